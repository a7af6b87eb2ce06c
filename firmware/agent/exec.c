/* Further processes in the container, each with streams of its own. */
#include "agent.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#define PROCESS_FILE "/run/exec.json"

static struct exec {
  uint32_t id; /* 0: this place is free */
  bool reported;
  struct process process;
} execs[MAX_EXECS];

static struct exec *find(uint32_t id) {
  for (size_t i = 0; i < MAX_EXECS; i++)
    if (execs[i].id == id) return &execs[i];
  return NULL;
}

bool exec_start(struct reader *body, struct failure *f) {
  uint32_t id = read_u32(body), flags = read_u32(body);
  const uint8_t *tokens = read_fixed(body, 3 * TOKEN_SIZE);
  struct span config = read_bytes(body);
  if (body->bad || body->left != 0 || id == 0 || find(id) != NULL) return fail(f, EINVAL, "PROTOCOL", "EXEC");
  if (!workload_running()) return fail(f, ESRCH, "STATE", "EXEC");
  struct exec *exec = find(0);
  if (exec == NULL) return fail(f, EBUSY, "STATE", "EXEC: %d processes already", MAX_EXECS);
  if (!write_file(PROCESS_FILE, config.data, config.size, 0600)) return fail(f, errno, "RUNTIME", PROCESS_FILE);
  const char *const arguments[] = {"exec", "--detach", "--process=" PROCESS_FILE, CONTAINER, NULL};
  bool good = process_run(&exec->process, flags, arguments, tokens, f);
  unlink(PROCESS_FILE);
  if (!good) {
    if (exec->process.pid != 0) kill(exec->process.pid, SIGKILL);
    process_close(&exec->process);
    return false;
  }
  exec->id = id;
  exec->reported = false;
  return true;
}

bool exec_signal(struct reader *body, struct failure *f) {
  uint32_t id = read_u32(body), signal = read_u32(body);
  if (body->bad || body->left != 0 || id == 0) return fail(f, EINVAL, "PROTOCOL", "EXEC_SIGNAL");
  struct exec *exec = find(id);
  if (exec == NULL) return fail(f, ESRCH, "STATE", "EXEC_SIGNAL");
  return process_signal(&exec->process, (int)signal, f);
}

bool exec_resize(struct reader *body, struct failure *f) {
  uint32_t id = read_u32(body), columns = read_u32(body), rows = read_u32(body);
  if (body->bad || body->left != 0 || id == 0 || columns > UINT16_MAX || rows > UINT16_MAX)
    return fail(f, EINVAL, "PROTOCOL", "EXEC_RESIZE");
  struct exec *exec = find(id);
  if (exec == NULL) return fail(f, ESRCH, "STATE", "EXEC_RESIZE");
  return process_resize(&exec->process, (uint16_t)columns, (uint16_t)rows, f);
}

void exec_reaped(pid_t pid, int status) {
  for (size_t i = 0; i < MAX_EXECS; i++)
    if (execs[i].id != 0 && process_reaped(&execs[i].process, pid, status)) return;
}

void exec_forget(void) {
  for (size_t i = 0; i < MAX_EXECS; i++) execs[i].reported = true;
}

bool exec_exited(uint32_t *id, uint32_t *status) {
  for (size_t i = 0; i < MAX_EXECS; i++) {
    struct exec *exec = &execs[i];
    if (exec->id == 0 || !exec->process.reaped || exec->reported) continue;
    exec->reported = true;
    *id = exec->id;
    *status = exec->process.status;
    return true;
  }
  return false;
}

/* Also frees the places of those that are over: what they left running may hold a stream until the host ends it. */
size_t exec_prepare(struct pollfd *fds) {
  size_t count = 0;
  for (size_t i = 0; i < MAX_EXECS; i++) {
    struct exec *exec = &execs[i];
    if (exec->id == 0) continue;
    const struct pump *pumps = exec->process.pumps;
    if (exec->reported && pump_idle(&pumps[1]) && pump_idle(&pumps[2])) {
      process_close(&exec->process);
      exec->id = 0;
      continue;
    }
    count += process_prepare(&exec->process, fds + count);
  }
  return count;
}

/* Between exec_prepare and this no place is taken or freed. */
void exec_run(const struct pollfd *fds) {
  for (size_t i = 0; i < MAX_EXECS; i++) {
    if (execs[i].id == 0) continue;
    process_pump(&execs[i].process, fds);
    fds += PROCESS_FDS;
  }
}
