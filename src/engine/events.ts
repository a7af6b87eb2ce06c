import { EventEmitter } from 'node:events'
import type { ContainerRecord } from './record.js'

/** Events that are kept for who asks for the past; Docker keeps as many. */
const KEPT = 256
/** Events that wait for a reader who does not read; then it is cut off. */
const MAX_BACKLOG = 4096

/** What happened to something (Docker Engine API, SystemEvents). */
export interface EngineEvent {
  readonly type: 'container' | 'image' | 'network' | 'volume'
  /** Docker's word, such as `start`, `die`, `pull`. */
  readonly action: string
  /** The container's id, the image's or network's name or id. */
  readonly id: string
  readonly attributes: Readonly<Record<string, string>>
  /** Milliseconds since 1970. */
  readonly time: number
}

export interface EventOptions {
  /** Milliseconds since 1970: what is kept from then on comes first. */
  readonly since?: number | undefined
  /** Milliseconds since 1970: the stream ends there. */
  readonly until?: number | undefined
  readonly signal: AbortSignal
}

/** What happens in this engine, for whoever listens, and the latest of what has happened. */
export class Events {
  readonly #kept: EngineEvent[] = []
  readonly #emitter = new EventEmitter<{ event: [EngineEvent] }>()

  constructor() {
    this.#emitter.setMaxListeners(0)
  }

  emit(
    type: EngineEvent['type'],
    action: string,
    id: string,
    attributes: EngineEvent['attributes'] = {},
  ): void {
    const event = { type, action, id, attributes, time: Date.now() }
    this.#kept.push(event)
    if (this.#kept.length > KEPT) this.#kept.shift()
    this.#emitter.emit('event', event)
  }

  /** An event of a container: its image, name and labels are told with it, as Docker does. */
  container(action: string, record: ContainerRecord, more: EngineEvent['attributes'] = {}): void {
    const { request, name } = record
    this.emit('container', action, record.id, { ...request.labels, image: request.image, name, ...more })
  }

  on(listener: (event: EngineEvent) => void): Disposable {
    this.#emitter.on('event', listener)
    return { [Symbol.dispose]: () => void this.#emitter.off('event', listener) }
  }

  /** Kept events since `since`, then those to come until `until` or the signal. Without `since` nothing of the past. */
  async *read({ since, until, signal }: EventOptions): AsyncGenerator<EngineEvent> {
    const waiting: EngineEvent[] = since === undefined ? [] : this.#kept.filter(({ time }) => time >= since)
    let wake = (): void => undefined
    let over = false
    const end = (): void => {
      over = true
      wake()
    }
    using _listening = this.on((event) => {
      if (waiting.push(event) > MAX_BACKLOG) end()
      wake()
    })
    signal.addEventListener('abort', end, { once: true })
    const timer = until === undefined ? undefined : setTimeout(end, clampDelay(until - Date.now()))
    try {
      while (!signal.aborted) {
        const event = waiting.shift()
        if (event) {
          if (until === undefined || event.time <= until) yield event
        } else if (over) return
        else await new Promise<void>((resolve) => (wake = resolve))
      }
    } finally {
      clearTimeout(timer)
      signal.removeEventListener('abort', end)
    }
  }
}

const clampDelay = (milliseconds: number): number => Math.min(Math.max(0, milliseconds), 2 ** 31 - 1)
