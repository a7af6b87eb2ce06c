import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { busyboxImage } from '../src/image/busybox.js'
import { ImageStore } from '../src/image/store.js'
import { type Bench, type BenchResult, median } from './bench.js'
import { CLI, Daemon, podmanSetup } from './daemons.js'

const ROUNDS = 5

/** Ten steps; the last is another one in each round. */
const dockerfile = (last: string): string => `FROM base
ENV A=one
WORKDIR /app
COPY one /app/one
RUN mkdir -p /data && seq 1 2000 > /data/numbers
COPY two /app/two
RUN for i in 1 2 3 4 5 6 7 8 9; do echo $i > /data/file-$i; done
RUN sort -r /data/numbers > /data/reversed
LABEL made=here
RUN echo ${last} > /last
`

function time(words: readonly string[], env: NodeJS.ProcessEnv): number {
  const from = process.hrtime.bigint()
  const { status, stderr, stdout } = spawnSync(words[0]!, words.slice(1), { env, encoding: 'utf8' })
  if (status !== 0) throw new Error(`${words.join(' ')}: status ${status}: ${stderr}${stdout}`.slice(0, 1000))
  return Number(process.hrtime.bigint() - from)
}

/**
 * @param isolation flags of `coracle build`
 * @param warm all but the last step are in the cache
 */
async function measure(isolation: readonly string[], warm: boolean, rounds: number): Promise<BenchResult> {
  const folder = mkdtempSync(join(tmpdir(), 'coracle-bench-'))
  const peer = await podmanSetup(folder)
  try {
    const context = join(folder, 'context')
    mkdirSync(context)
    for (const name of ['one', 'two']) writeFileSync(join(context, name), name.repeat(10_000))
    await using daemon = await Daemon.ours()
    const { env } = daemon
    const host = `unix://${daemon.socket}`
    const coracle = (...words: string[]): number => time([process.execPath, CLI, '-H', host, ...words], env)
    const buildah = (...words: string[]): number => time([...peer.words, 'buildah', ...words], peer.env)
    // The same base for both, with a history, which buildah needs.
    const base = join(folder, 'base')
    mkdirSync(base)
    await busyboxImage(await ImageStore.open(join(env['CORACLE_ROOT']!, 'images')))
    coracle('create', '--isolation', 'process', '--name', 'base', 'busybox')
    coracle('export', '-o', join(base, 'base.tar'), 'base')
    writeFileSync(join(base, 'Dockerfile'), 'FROM scratch\nADD base.tar /\n')
    coracle('build', '-q', '-t', 'base', base)
    buildah('build', '-q', '-t', 'base', base)
    let made = 0
    const both = (fresh: boolean): number => {
      writeFileSync(join(context, 'Dockerfile'), dockerfile(`round-${made++}`))
      const again = fresh ? ['--no-cache'] : []
      const ours = coracle('build', '-q', ...again, ...isolation, '-t', 'bench', context)
      return ours / buildah('build', '-q', '--pull=never', '--layers', ...again, '-t', 'bench', context)
    }
    both(false)
    const ratios = Array.from({ length: rounds }, () => both(!warm))
    return { ratio: median(ratios), note: `median of ${rounds} rounds` }
  } finally {
    peer.clean()
    rmSync(folder, { recursive: true, force: true })
  }
}

const PROCESS = ['--isolation', 'process']

export const buildCold: Bench = {
  name: 'build-cold',
  what: "build of ten steps, by the daemon, each RUN in a microVM / buildah's with crun",
  aim: 'none',
  run: () => measure([], false, 1),
}

export const buildColdProcess: Bench = {
  name: 'build-cold-process',
  what: "build of ten steps, by the daemon in process isolation / buildah's with crun",
  aim: 'none',
  run: () => measure(PROCESS, false, ROUNDS),
}

export const buildWarm: Bench = {
  name: 'build-warm',
  what: "build of ten steps of which the last changed, by the daemon in process isolation / buildah's with crun",
  aim: { atMost: 1 },
  run: () => measure(PROCESS, true, ROUNDS),
}
