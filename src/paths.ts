import { homedir, tmpdir } from 'node:os'
import { join } from 'node:path'

const root = process.getuid?.() === 0

/**
 * Where the host keeps our things. Each has an environment variable that moves it.
 * The cache holds what set-up fetched and built, and can be deleted at any time; the state holds what users stored;
 * the run folder holds sockets and locks of what runs now.
 */
export const paths = {
  get cache(): string {
    return (
      process.env['CORACLE_CACHE'] ??
      join(process.env['XDG_CACHE_HOME'] ?? join(homedir(), '.cache'), 'coracle')
    )
  },
  get state(): string {
    return (
      process.env['CORACLE_ROOT'] ?? (root ? '/var/lib/coracle' : join(homedir(), '.local/share/coracle'))
    )
  },
  get run(): string {
    return (
      process.env['CORACLE_RUN'] ??
      (root ? '/run/coracle' : join(process.env['XDG_RUNTIME_DIR'] ?? tmpdir(), 'coracle'))
    )
  },
}
