import { writeSync } from 'node:fs'

/** From the least to the most important. */
export const LOG_LEVELS = ['debug', 'info', 'warn', 'error'] as const
export type LogLevel = (typeof LOG_LEVELS)[number]

const STDERR = 2

/**
 * What the daemon and the monitors have to say: one JSON object a line, with `time`, `level`, `event` and what belongs
 * to the event, such as `container`, its id. The names of events and fields are for programs and stay.
 */
export class Log {
  readonly #least: number
  readonly #write: (line: string) => void

  /** @param write gets a whole line @default this process's stderr */
  constructor(level: LogLevel, write: (line: string) => void = toStderr) {
    this.#least = LOG_LEVELS.indexOf(level)
    this.#write = write
  }

  debug(event: string, fields: object = {}): void {
    this.#say('debug', event, fields)
  }
  info(event: string, fields: object = {}): void {
    this.#say('info', event, fields)
  }
  warn(event: string, fields: object = {}): void {
    this.#say('warn', event, fields)
  }
  error(event: string, fields: object = {}): void {
    this.#say('error', event, fields)
  }

  #say(level: LogLevel, event: string, fields: object): void {
    if (LOG_LEVELS.indexOf(level) < this.#least) return
    this.#write(`${JSON.stringify({ time: new Date().toISOString(), level, event, ...fields })}\n`)
  }
}

export const isLogLevel = (text: string | undefined): text is LogLevel =>
  (LOG_LEVELS as readonly (string | undefined)[]).includes(text)

/** This process's own, at the level that CORACLE_LOG_LEVEL names; `info` else. */
export const log = new Log(
  isLogLevel(process.env['CORACLE_LOG_LEVEL']) ? process.env['CORACLE_LOG_LEVEL'] : 'info',
)

/** At once, so that nothing is lost at an end; a log that cannot be written is no reason to end. */
function toStderr(line: string): void {
  try {
    writeSync(STDERR, line)
  } catch {
    // Full, or nobody reads it any more.
  }
}
