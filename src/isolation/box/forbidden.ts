/* asm/unistd_64.h */
const EXECVE = 59
const SECCOMP = 317
const EXECVEAT = 322

/** What a box needs to be started, and never again: forbidden before it is handed anything. */
export const FORBIDDEN = [EXECVE, EXECVEAT, SECCOMP]
