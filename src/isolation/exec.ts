import type { ExecSpec, OciConfig } from './sandbox.js'
import { readUser, type ReadRootFile } from './user.js'

type Process = OciConfig['process']

/** Processes that {@link ExecSpec} may add to a container at a time; the guest's agent has room for as many. */
export const MAX_RUNNING = 32

/**
 * OCI runtime-spec's `process` of a further process in a container: the container's own, but for what `exec` says.
 * @param config the container's, its user resolved
 * @throws CoracleError INVALID_ARGUMENT for a user that the image does not have
 */
export async function execProcess(
  config: Pick<OciConfig, 'process' | 'annotations'>,
  exec: ExecSpec,
  read: ReadRootFile,
): Promise<Process> {
  const { process: base } = config
  const { consoleSize: _, ...kept } = base
  const process: Process = {
    ...kept,
    terminal: exec.tty,
    ...(exec.tty && exec.consoleSize ? { consoleSize: exec.consoleSize } : {}),
    args: [...exec.args],
    env: environment(base.env, exec),
    cwd: exec.cwd ?? base.cwd,
  }
  if (exec.user !== undefined) process.user = await readUser(exec.user, config, read)
  const bounding = exec.capabilities ?? base.capabilities?.bounding
  if (bounding && (exec.user !== undefined || exec.capabilities)) {
    // Root has what the container may have; to everybody else a program must grant it.
    const granted = process.user.uid === 0 ? [...bounding] : []
    process.capabilities = {
      bounding: [...bounding],
      effective: granted,
      permitted: granted,
      inheritable: [],
      ambient: [],
    }
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
