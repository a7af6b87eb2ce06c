import { addAbortSignal } from 'node:stream'
import { StringDecoder } from 'node:string_decoder'
import { CoracleError } from '../../errors.js'
import type { HistoryEntry, RawConfig } from '../../image/compose.js'
import type { Image } from '../../image/image.js'
import { identify } from '../../isolation/liveness.js'
import type { IsolationName } from '../../isolation/sandbox.js'
import { ImageFiles } from '../../image/image-files.js'
import type { Engine } from '../engine.js'
import { FrameParser } from '../frames.js'
import type { MountRequest } from '../mounts.js'
import type { CreateRequest } from '../record.js'
import { withoutStubs } from './stubs.js'

/** One RUN: a command on an image, and what becomes of it. */
export interface RunStep {
  readonly base: Image
  /** The new image's. */
  readonly config: RawConfig
  readonly history: [...HistoryEntry[], HistoryEntry]
  readonly command: readonly string[]
  readonly env: readonly string[]
  readonly user: string
  readonly workingDirectory: string
  /** Nothing in them becomes part of the image. */
  readonly mounts: readonly MountRequest[]
  /** Mount point to options, and as for {@link mounts}. */
  readonly tmpfs: Readonly<Record<string, string>>
  readonly network: string | undefined
  readonly isolation: IsolationName | undefined
  readonly hypervisor: 'auto' | 'kvm' | 'qemu' | undefined
  /** Bytes. */
  readonly memory: number | undefined
  readonly extraHosts: CreateRequest['extraHosts'] | undefined
  /** Bytes. */
  readonly shmSize: number | undefined
  readonly ulimits: CreateRequest['ulimits'] | undefined
  /** Gets the command's output. */
  readonly say: (text: string) => void
  readonly signal: AbortSignal
}

/** What a step needs of the engine. */
export type RunEngine = Pick<Engine, 'create' | 'attach' | 'start' | 'wait' | 'remove' | 'archives'>

/**
 * Runs the command in a container of its own, which is gone afterwards, whatever happens.
 * @param compose makes the new image of the changes
 * @throws CoracleError BUILD_FAILED where the command fails; the signal's reason
 */
export async function runStep(
  engine: RunEngine,
  step: RunStep,
  compose: (layer: AsyncIterable<Uint8Array>) => Promise<Image>,
): Promise<Image> {
  const { signal, say, isolation, hypervisor, memory, network, extraHosts, shmSize, ulimits } = step
  const { id } = await engine.create({
    image: step.base.id,
    entrypoint: [],
    ignoreVolumes: true,
    owner: identify('self')!,
    command: step.command,
    env: step.env,
    workingDirectory: step.workingDirectory,
    ...(step.user ? { user: step.user } : {}),
    mounts: step.mounts,
    tmpfs: step.tmpfs,
    ...(isolation === undefined ? {} : { isolation }),
    ...(hypervisor === undefined ? {} : { hypervisor }),
    ...(memory === undefined ? {} : { memory }),
    ...(network === undefined ? {} : { networkMode: network }),
    ...(extraHosts && { extraHosts }),
    ...(shmSize !== undefined && { shmSize }),
    ...(ulimits && { ulimits }),
  })
  try {
    say(` ---> Running in ${id.slice(0, 12)}\n`)
    const { stream } = await engine.attach(id, { stdin: false, stdout: true, stderr: true }, signal)
    const { done } = await engine.wait(id, 'next-exit', signal)
    await engine.start(id, signal)
    const parser = new FrameParser()
    const decoders = [0, 1, 2, 3].map(() => new StringDecoder('utf8'))
    // Who wanted it is gone: the container goes, whatever it is at.
    for await (const chunk of addAbortSignal(signal, await stream))
      parser.push(chunk as Buffer, (from, payload) => say(decoders[from]!.write(payload)))
    const { exitCode, error } = await done
    signal.throwIfAborted()
    if (exitCode !== 0)
      throw new CoracleError(
        'BUILD_FAILED',
        `The command '${step.command.join(' ').slice(0, 256)}' returned a non-zero code: ${exitCode}${error === undefined ? '' : ` (${error})`}`,
      )
    using files = new ImageFiles(step.base.layers)
    const targets = [...step.mounts.map(({ target }) => target), ...Object.keys(step.tmpfs)]
    return await engine.archives.layer(id, compose, { change: withoutStubs(targets, files) })
  } finally {
    await engine.remove(id, true)
  }
}
