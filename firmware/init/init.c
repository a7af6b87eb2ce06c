/*
 * Process 1 of a container with --init: `init -- COMMAND...` runs the command, passes on to it every signal that it gets,
 * reaps what is left to it, and ends as the command does. The kernel then ends whatever is left.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* Those that a process brings upon itself are not waited for: they end it. */
static const int OWN[] = {SIGFPE, SIGILL, SIGSEGV, SIGBUS, SIGABRT, SIGTRAP, SIGSYS};

/* In a group of its own, in the terminal's foreground where there is one: what is typed there is for it alone. */
static _Noreturn void run(char **command, const sigset_t *signals) {
  setpgid(0, 0);
  /* SIGTTOU, which this would raise, is blocked still. */
  if (isatty(STDIN_FILENO)) tcsetpgrp(STDIN_FILENO, getpid());
  sigprocmask(SIG_SETMASK, signals, NULL);
  execvp(command[0], command);
  int error = errno;
  fprintf(stderr, "init: exec: \"%s\": %s\n", command[0], strerror(error));
  _exit(error == ENOENT ? 127 : 126);
}

int main(int argc, char **argv) {
  if (argc < 3 || strcmp(argv[1], "--") != 0) {
    fputs("usage: init -- COMMAND [ARGUMENT]...\n", stderr);
    return 125;
  }
  sigset_t waited, before;
  sigfillset(&waited);
  for (size_t i = 0; i < sizeof OWN / sizeof *OWN; i++) sigdelset(&waited, OWN[i]);
  sigprocmask(SIG_SETMASK, &waited, &before);
  pid_t child = fork();
  if (child == 0) run(argv + 2, &before);
  if (child < 0) {
    perror("init: fork");
    return 125;
  }
  for (;;) {
    siginfo_t info;
    int signal = sigwaitinfo(&waited, &info);
    if (signal < 0) continue;
    if (signal != SIGCHLD) {
      kill(child, signal);
      continue;
    }
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;)
      if (pid == child && (WIFEXITED(status) || WIFSIGNALED(status)))
        return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
}
