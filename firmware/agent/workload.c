/* The one container of this guest, and further processes in it: created and started by crun, reaped by us. */
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define BUNDLE "/run/c"
#define LOG "/run/crun.log"
#define PID_FILE "/run/crun.pid"
#define CONSOLE "/run/crun.tty"

#define EXIT_OOM_KILLED 1u

enum state { EMPTY, CREATED, RUNNING, EXITED };

static struct {
  enum state state;
  bool mounted;
  struct process process;
  bool reported;
  unsigned long oom_kills;
} workload = {.process.terminal = -1};

uint32_t workload_state(void) { return workload.state; }

static unsigned long oom_kills(void) {
  unsigned long count = 0;
  char line[128];
  FILE *file = fopen("/proc/vmstat", "re");
  if (file == NULL) return 0;
  while (fgets(line, sizeof line, file) != NULL)
    if (sscanf(line, "oom_kill %lu", &count) == 1) break;
  fclose(file);
  return count;
}

/* The last line that crun logged, without its stamp and level. */
static void read_log(char *out, size_t size) {
  char text[4096] = "";
  int fd = open(LOG, O_RDONLY | O_CLOEXEC);
  if (fd >= 0) {
    ssize_t n = read(fd, text, sizeof text - 1);
    text[n > 0 ? n : 0] = '\0';
    close(fd);
  }
  size_t length = strlen(text);
  while (length > 0 && text[length - 1] == '\n') text[--length] = '\0';
  char *line = strrchr(text, '\n');
  line = line == NULL ? text : line + 1;
  snprintf(out, size, "%.*s", (int)size - 1, line);
}

static bool mentions(const char *text, const char *part) { return strstr(text, part) != NULL; }

/* crun tells why it failed in words only; these are the ones that the user's command can cause. */
static bool runtime_failed(struct failure *f, const char *verb) {
  char text[400];
  read_log(text, sizeof text);
  if (mentions(text, "executable")) {
    if (mentions(text, "not found in $PATH") || mentions(text, "No such file"))
      return fail(f, 0, "NOT_FOUND", "%s", text);
    if (mentions(text, "ermission denied") || mentions(text, "not executable"))
      return fail(f, 0, "NOT_EXECUTABLE", "%s", text);
  }
  return fail(f, 0, "RUNTIME", "crun %s: %s", verb, text[0] != '\0' ? text : "failed without a reason");
}

/* Runs crun with the given standard streams and waits for it. Its children that end meanwhile are reaped later. */
bool run_crun(const char *const *arguments, const int streams[3], struct failure *f) {
  const char *argv[20] = {"crun", "--root=/run/crun", "--cgroup-manager=cgroupfs", "--log=file:" LOG};
  size_t count = 4;
  for (; *arguments != NULL && count < 19; arguments++) argv[count++] = *arguments;
  unlink(LOG);
  pid_t pid = fork();
  if (pid < 0) return fail(f, errno, "RUNTIME", "fork");
  if (pid == 0) {
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    for (int i = 0; i < 3; i++)
      if (dup2(streams[i], i) < 0) _exit(125);
    char *environment[] = {"PATH=/usr/sbin:/usr/bin:/sbin:/bin", NULL};
    execve("/usr/bin/crun", (char *const *)argv, environment);
    _exit(124);
  }
  int status;
  while (waitpid(pid, &status, 0) < 0)
    if (errno != EINTR) return fail(f, errno, "RUNTIME", "wait for crun");
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return true;
  return runtime_failed(f, argv[4]);
}

static void close_all(int *fds, size_t count) {
  for (size_t i = 0; i < count; i++)
    if (fds[i] >= 0) close(fds[i]);
}

/* The listening end of the socket over which crun hands out the terminal. */
static int listen_console(void) {
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = CONSOLE};
  unlink(CONSOLE);
  if (fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof address) == 0 && listen(fd, 1) == 0) return fd;
  if (fd >= 0) close(fd);
  return -1;
}

static int receive_terminal(int listener) {
  int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
  if (fd < 0) return -1;
  char name[256];
  union {
    struct cmsghdr header;
    char space[CMSG_SPACE(sizeof(int))];
  } control;
  struct iovec part = {.iov_base = name, .iov_len = sizeof name};
  struct msghdr message = {
      .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
  int terminal = -1;
  if (recvmsg(fd, &message, MSG_CMSG_CLOEXEC) > 0) {
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    if (header != NULL && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS)
      memcpy(&terminal, CMSG_DATA(header), sizeof terminal);
  }
  close(fd);
  return terminal;
}

static bool read_pid(struct process *process, struct failure *f) {
  FILE *file = fopen(PID_FILE, "re");
  int pid = 0;
  bool found = file != NULL && fscanf(file, "%d", &pid) == 1 && pid > 1;
  if (file != NULL) fclose(file);
  if (!found) return fail(f, 0, "RUNTIME", "crun left no process id");
  process->pid = pid;
  return true;
}

bool workload_files(struct reader *body, struct failure *f) {
  uint32_t count = read_u32(body);
  if (count > MAX_FILES) return fail(f, EINVAL, "PROTOCOL", "%u files", count);
  if (mkdir(BUNDLE "/files", 0755) < 0 && errno != EEXIST) return fail(f, errno, "RUNTIME", "folder of files");
  for (uint32_t i = 0; i < count; i++) {
    char name[64], path[128];
    read_string(body, name, sizeof name);
    uint32_t mode = read_u32(body);
    struct span data = read_bytes(body);
    if (body->bad || name[0] == '\0' || name[0] == '.' || strchr(name, '/') != NULL)
      return fail(f, EINVAL, "PROTOCOL", "file %u", i);
    snprintf(path, sizeof path, BUNDLE "/files/%s", name);
    if (!write_file(path, data.data, data.size, mode & 07777)) return fail(f, errno, "RUNTIME", "%s", path);
  }
  return true;
}

static void read_layer(struct reader *body, struct layer *layer) {
  read_string(body, layer->device, sizeof layer->device);
  read_string(body, layer->type, sizeof layer->type);
  read_string(body, layer->options, sizeof layer->options);
}

static bool pump_pair(struct pump *pump, int from, int to, bool socket, struct failure *f) {
  if (from >= 0 && to >= 0 && pump_open(pump, from, to, socket)) return true;
  int both[2] = {from, to};
  close_all(both, 2);
  return fail(f, ENOMEM, "STREAM", "stream");
}

static bool with_terminal(struct process *p, const char *const *arguments, bool input, const uint8_t *token,
                          struct failure *f) {
  int listener = listen_console();
  if (listener < 0) return fail(f, errno, "RUNTIME", "console socket");
  int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  bool created = null >= 0 && run_crun(arguments, (int[]){null, null, null}, f);
  if (created) p->terminal = receive_terminal(listener);
  close(listener);
  close(null);
  if (!created || !read_pid(p, f)) return false;
  if (p->terminal < 0) return fail(f, errno, "RUNTIME", "crun sent no terminal");
  int stream = open_stream(token, f);
  if (stream < 0) return false;
  /* Each pump owns its descriptors; the terminal itself stays ours for resizing. */
  if (input && !pump_pair(&p->pumps[0], dup(stream), dup(p->terminal), false, f)) {
    close(stream);
    return false;
  }
  return pump_pair(&p->pumps[1], dup(p->terminal), stream, true, f);
}

static bool with_pipes(struct process *p, const char *const *arguments, bool input, const uint8_t *tokens,
                       struct failure *f) {
  int in[2] = {-1, -1}, out[2] = {-1, -1}, error[2] = {-1, -1};
  bool made = pipe2(out, O_CLOEXEC) == 0 && pipe2(error, O_CLOEXEC) == 0;
  if (input) made = made && pipe2(in, O_CLOEXEC) == 0;
  else in[0] = open("/dev/null", O_RDONLY | O_CLOEXEC);
  if (!made || in[0] < 0) {
    int all[6] = {in[0], in[1], out[0], out[1], error[0], error[1]};
    close_all(all, 6);
    return fail(f, errno, "RUNTIME", "pipes");
  }
  bool created = run_crun(arguments, (int[]){in[0], out[1], error[1]}, f) && read_pid(p, f);
  close_all((int[]){in[0], out[1], error[1]}, 3);
  if (!created) {
    close_all((int[]){in[1], out[0], error[0]}, 3);
    return false;
  }
  const int ours[3] = {in[1], out[0], error[0]};
  bool good = true;
  for (size_t i = 0; i < 3; i++) {
    if (ours[i] < 0) continue;
    int stream = good ? open_stream(tokens + i * TOKEN_SIZE, f) : -1;
    if (stream < 0) {
      close(ours[i]);
      good = false;
      continue;
    }
    good = i == 0 ? pump_pair(&p->pumps[i], stream, ours[i], false, f)
                  : pump_pair(&p->pumps[i], ours[i], stream, true, f);
  }
  return good;
}

bool process_run(struct process *p, uint32_t flags, const char *const *arguments, const uint8_t *tokens,
                 struct failure *f) {
  const char *argv[12] = {arguments[0], "--pid-file=" PID_FILE};
  size_t count = 2;
  if (flags & FLAG_TTY) argv[count++] = "--console-socket=" CONSOLE;
  for (arguments++; *arguments != NULL && count < 11; arguments++) argv[count++] = *arguments;
  *p = (struct process){.terminal = -1};
  unlink(PID_FILE);
  bool input = flags & FLAG_STDIN;
  return flags & FLAG_TTY ? with_terminal(p, argv, input, tokens + TOKEN_SIZE, f)
                          : with_pipes(p, argv, input, tokens, f);
}

static void replace(int *fd, int by) {
  fcntl(by, F_SETFL, fcntl(by, F_GETFL) | O_NONBLOCK);
  close(*fd);
  *fd = by;
}

bool process_reattach(struct process *p, uint32_t flags, const uint8_t *tokens, uint32_t *connected,
                      struct failure *f) {
  if (p->terminal >= 0 && (flags & FLAG_STDIN) && pump_idle(&p->pumps[0]) && !pump_idle(&p->pumps[1]) &&
      !pump_pair(&p->pumps[0], dup(p->terminal), dup(p->terminal), false, f))
    return false;
  for (size_t i = 0; i < 3; i++) {
    struct pump *pump = &p->pumps[i];
    if (pump_idle(pump)) continue;
    /* A terminal has one stream for both ways. */
    bool shared = p->terminal >= 0 && i == 1 && (*connected & 1u);
    int stream = shared ? dup(p->pumps[0].from) : open_stream(tokens + (p->terminal >= 0 ? 1 : i) * TOKEN_SIZE, f);
    if (stream < 0) return fail(f, errno, "STREAM", "a new stream");
    replace(i == 0 ? &pump->from : &pump->to, stream);
    *connected |= 1u << i;
  }
  return true;
}

bool process_signal(const struct process *p, int signal, struct failure *f) {
  if (p->pid == 0 || p->reaped) return fail(f, ESRCH, "STATE", "signal %d", signal);
  if (kill(p->pid, signal) < 0) return fail(f, errno, "RUNTIME", "signal %d", signal);
  return true;
}

bool process_resize(const struct process *p, uint16_t columns, uint16_t rows, struct failure *f) {
  if (p->terminal < 0) return fail(f, ENOTTY, "STATE", "resize");
  struct winsize size = {.ws_col = columns, .ws_row = rows};
  if (ioctl(p->terminal, TIOCSWINSZ, &size) < 0) return fail(f, errno, "RUNTIME", "resize");
  return true;
}

bool process_reaped(struct process *p, pid_t pid, int status) {
  if (p->pid == 0 || p->reaped || pid != p->pid) return false;
  p->reaped = true;
  p->status = WIFSIGNALED(status) ? 128 + (uint32_t)WTERMSIG(status) : (uint32_t)WEXITSTATUS(status);
  return true;
}

void process_close(struct process *p) {
  for (size_t i = 0; i < 3; i++) pump_close(&p->pumps[i]);
  if (p->terminal >= 0) close(p->terminal);
  *p = (struct process){.terminal = -1};
}

size_t process_prepare(const struct process *p, struct pollfd *fds) {
  size_t count = 0;
  for (size_t i = 0; i < 3; i++) count += pump_prepare(&p->pumps[i], fds + count);
  return count;
}

void process_pump(struct process *p, const struct pollfd *fds) {
  for (size_t i = 0; i < 3; i++) pump_run(&p->pumps[i], fds + 2 * i);
}

bool workload_mount(struct reader *body, struct failure *f) {
  static struct root root;
  if (workload.mounted) return fail(f, EBUSY, "STATE", "MOUNT");
  root.count = read_u32(body);
  if (root.count == 0 || root.count > MAX_LAYERS) return fail(f, EINVAL, "PROTOCOL", "%u layers", root.count);
  for (uint32_t i = 0; i < root.count; i++) read_layer(body, &root.layers[i]);
  read_layer(body, &root.upper);
  read_string(body, root.overlay, sizeof root.overlay);
  if (body->bad || body->left != 0) return fail(f, EINVAL, "PROTOCOL", "MOUNT");
  workload.mounted = true;
  return mount_root(&root, f);
}

bool workload_read(struct reader *body, struct writer *out, struct failure *f) {
  char path[1024];
  uint8_t data[MAX_READ];
  read_string(body, path, sizeof path);
  uint64_t offset = read_u64(body);
  if (body->bad || body->left != 0) return fail(f, EINVAL, "PROTOCOL", "READ");
  if (!workload.mounted) return fail(f, EINVAL, "STATE", "READ");
  ssize_t n = read_root(path, offset, data, sizeof data, f);
  if (n < 0) return false;
  write_bytes(out, data, (size_t)n);
  return true;
}

bool workload_create(struct reader *body, struct failure *f) {
  if (workload.state != EMPTY) return fail(f, EBUSY, "STATE", "CREATE");
  if (!workload.mounted) return fail(f, EINVAL, "STATE", "CREATE before MOUNT");
  uint32_t flags = read_u32(body);
  const uint8_t *tokens = read_fixed(body, 3 * TOKEN_SIZE);
  struct span config = read_bytes(body);
  if (body->bad) return fail(f, EINVAL, "PROTOCOL", "CREATE");
  if (!workload_files(body, f)) return false;
  if (body->bad || body->left != 0) return fail(f, EINVAL, "PROTOCOL", "CREATE");
  if (!write_file(BUNDLE "/config.json", config.data, config.size, 0600))
    return fail(f, errno, "RUNTIME", "config.json");
  const char *const arguments[] = {"create", "--bundle=" BUNDLE, CONTAINER, NULL};
  if (!process_run(&workload.process, flags, arguments, tokens, f)) return false;
  workload.oom_kills = oom_kills();
  workload.state = CREATED;
  return true;
}

bool workload_reattach(uint32_t flags, const uint8_t *tokens, uint32_t *connected, struct failure *f) {
  return process_reattach(&workload.process, flags, tokens, connected, f);
}

bool workload_start(struct failure *f) {
  if (workload.state != CREATED) return fail(f, EINVAL, "STATE", "START");
  int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  const char *const arguments[] = {"start", CONTAINER, NULL};
  bool started = null >= 0 && run_crun(arguments, (int[]){null, null, null}, f);
  close(null);
  if (started) workload.state = RUNNING;
  return started;
}

bool workload_signal(int signal, struct failure *f) {
  if (workload.state != CREATED && workload.state != RUNNING) return fail(f, ESRCH, "STATE", "SIGNAL");
  return process_signal(&workload.process, signal, f);
}

bool workload_resize(uint16_t columns, uint16_t rows, struct failure *f) {
  return process_resize(&workload.process, columns, rows, f);
}

void workload_reaped(pid_t pid, int status) {
  if (workload.state != EMPTY) process_reaped(&workload.process, pid, status);
}

/* True once: when the process has gone and all that it wrote is with the host. */
bool workload_exited(uint32_t *status, uint32_t *flags) {
  if (!workload.process.reaped || workload.reported) return false;
  if (!pump_idle(&workload.process.pumps[1]) || !pump_idle(&workload.process.pumps[2])) return false;
  workload.reported = true;
  workload.state = EXITED;
  *status = workload.process.status;
  *flags = oom_kills() > workload.oom_kills ? EXIT_OOM_KILLED : 0;
  return true;
}

pid_t workload_pid(void) { return workload_running() ? workload.process.pid : 0; }

bool workload_running(void) { return workload.state == RUNNING && !workload.process.reaped; }

size_t workload_prepare(struct pollfd *fds) { return process_prepare(&workload.process, fds); }

void workload_run(const struct pollfd *fds) { process_pump(&workload.process, fds); }
