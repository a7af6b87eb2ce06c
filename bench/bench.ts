/** What a bench hopes for: the ratio's bound, or none where the figure is only to be known. */
export type Aim = { readonly atLeast: number } | { readonly atMost: number } | 'none'

export interface BenchResult {
  /** Ours against the peer's; which way is better, the aim says. */
  readonly ratio: number
  /** What else a reader should know, such as counts of exits; no absolute time. */
  readonly note?: string
}

/** One comparison of us and a peer, both measured in one run. */
export interface Bench {
  /** For the command line. */
  readonly name: string
  /** What is divided by what, in one line. */
  readonly what: string
  readonly aim: Aim
  /** @throws Skip where it cannot run here */
  run(): Promise<BenchResult>
}

/** A bench that cannot run here, and why. */
export class Skip extends Error {
  override readonly name = 'Skip'
}

export function verdict(ratio: number, aim: Aim): 'met' | 'falls short' | 'measured' {
  if (aim === 'none') return 'measured'
  return ('atLeast' in aim ? ratio >= aim.atLeast : ratio <= aim.atMost) ? 'met' : 'falls short'
}

export function describeAim(aim: Aim): string {
  if (aim === 'none') return '-'
  return 'atLeast' in aim ? `≥ ${aim.atLeast}` : `≤ ${aim.atMost}`
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2
}
