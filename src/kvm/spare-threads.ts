import { once } from 'node:events'
import { type Transferable, Worker, parentPort } from 'node:worker_threads'

/*
 * Threads that are started before there is something for them to do: a thread of Node takes its time to come up and
 * to load its module. Nothing else is imported here, so that who begins with this waits for nothing.
 */

/** A heap that cannot grow without bound, whatever the guest sends, and of that little for young objects. In MiB. */
const HEAP = { maxOldGenerationSizeMb: 128, maxYoungGenerationSizeMb: 3 }

const spare = new Map<string, Worker[]>()

function newThread(module: URL): Worker {
  // Not the flags of the main thread, such as a test runner's loaders: they cost time and mean nothing here.
  const name = module.pathname.split('/').at(-1)
  return new Worker(module, { execArgv: [], resourceLimits: HEAP, ...(name !== undefined && { name }) })
}

/** Starts `count` threads for {@link startThread} to take. They keep no process alive. */
export function prepareThreads(module: URL, count: number): void {
  const threads = Array.from({ length: count }, () => newThread(module))
  for (const thread of threads) thread.unref()
  spare.set(module.href, [...(spare.get(module.href) ?? []), ...threads])
}

/** A thread that runs `module` on `data`, which it gets by {@link threadData}. */
export function startThread(module: URL, data: unknown, transfer: readonly Transferable[] = []): Worker {
  const thread = spare.get(module.href)?.pop() ?? newThread(module)
  thread.ref()
  thread.postMessage(data, transfer)
  return thread
}

/** In a thread: what it was started for. */
export async function threadData(): Promise<unknown> {
  const [data] = (await once(parentPort!, 'message')) as [unknown]
  return data
}
