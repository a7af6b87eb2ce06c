import type { ExecSpec, OciConfig } from './sandbox.js'
import { resolveUser, type ReadRootFile } from './user.js'

type Process = OciConfig['process']

/** Processes that {@link ExecSpec} may add to a container at a time; the guest's agent has room for as many. */
export const MAX_RUNNING = 32

/**
 * OCI runtime-spec's `process` of a further process in a container: the container's own, but for what `exec` says.
 * @param base the container's, its user resolved
 * @throws CoracleError INVALID_ARGUMENT for a user that the image does not have
 */
export async function execProcess(base: Process, exec: ExecSpec, read: ReadRootFile): Promise<Process> {
  const { consoleSize: _, ...kept } = base
  const process: Process = {
    ...kept,
    terminal: exec.tty,
    ...(exec.tty && exec.consoleSize ? { consoleSize: exec.consoleSize } : {}),
    args: [...exec.args],
    env: environment(base.env, exec),
    cwd: exec.cwd ?? base.cwd,
  }
  if (exec.user === undefined) return process
  const user = resolveUser(exec.user, await read('/etc/passwd'), await read('/etc/group'))
  process.user = user
  if (base.capabilities) {
    // Root has what the container may have; to everybody else a program must grant it.
    const granted = user.uid === 0 ? base.capabilities.bounding : []
    process.capabilities = { ...base.capabilities, effective: granted, permitted: granted, ambient: [] }
  }
  return process
}

/** The last of a name counts; one without a value takes it away. */
function environment(base: readonly string[], { env, tty }: ExecSpec): string[] {
  const all = new Map<string, string>()
  for (const entry of [...(tty ? ['TERM=xterm'] : []), ...base, ...env])
    all.set(entry.split('=', 1)[0]!, entry)
  return [...all.values()].filter((entry) => entry.includes('='))
}
