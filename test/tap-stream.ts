import { createInterface } from 'node:readline'
import type { Readable } from 'node:stream'

/** What a run of tap counted, assertions and all. */
export interface Totals {
  passed: number
  failed: number
  skipped: number
}

const SUMMARY = /^# \{ total: (\d+)(?:, pass: (\d+))?(?:, fail: (\d+))?(?:, todo: \d+)?(?:, skip: (\d+))?/

/**
 * Reads raw TAP 14 and prints what a person wants of it: a line a file, each failure with its diagnosis, each skip
 * with its reason.
 * @returns undefined where the stream ended without tap's closing summary
 */
export async function readTap(input: Readable, print: (line: string) => void): Promise<Totals | undefined> {
  let totals: Totals | undefined
  let failing = false
  for await (const line of createInterface({ input })) {
    const summary = SUMMARY.exec(line)
    if (summary !== null) {
      const [passed, failed, skipped] = summary.slice(2, 5).map((count) => Number(count ?? 0))
      totals = { passed: passed!, failed: failed!, skipped: skipped! }
    } else if (/^\s*not ok /.test(line)) {
      failing = true
      print(line)
    } else if (failing && /^\s*(ok|not ok|#|\d+\.\.\d+)/.test(line)) {
      failing = false
      if (/^ok |# SKIP/.test(line)) print(line)
    } else if (failing || /^ok |# SKIP|^Bail out!/.test(line)) {
      print(line)
    }
  }
  return totals
}
