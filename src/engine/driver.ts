import type { Sandbox, SandboxExit, SandboxSpec } from '../isolation/sandbox.js'

/** What the engine needs of the isolation layer. Tests pass a fake; {@link loadDriver} is the real one. */
export interface SandboxDriver {
  /**
   * Spawns the monitor of a sandbox that does not run. An exit status left by an earlier run is forgotten.
   * The streams may be attached before {@link Sandbox.start}.
   */
  launchSandbox(spec: SandboxSpec, signal?: AbortSignal): Promise<Sandbox>
  /** Finds the living monitor of a sandbox, or undefined where there is none. */
  openSandbox(spec: SandboxSpec): Promise<Sandbox | undefined>
  /** The exit status that a monitor, now dead, wrote; undefined where it wrote none. */
  readExit(spec: SandboxSpec): Promise<SandboxExit | undefined> | SandboxExit | undefined
  /** Releases what a dead monitor may have left: processes, mounts, cgroups, sockets. Idempotent. */
  reap(spec: SandboxSpec): Promise<void> | void
}
