import { AgentClient } from './agent-client.js'
import { PORT_CONTROL, PORT_STREAM } from './agent-protocol.js'
import type { GuestMachine } from './guest-machine.js'

/** Until its agent has said hello, a guest must use so much processor time in every so many ms, else it hangs. */
const HELLO_WINDOW = 30_000
const HELLO_WORK = 500

type Greeted = Pick<GuestMachine, 'listen' | 'start' | 'work' | 'exited'>

/**
 * Starts the machine, and resolves when its agent has said hello, in whichever attempt. One that ends is the caller's
 * to notice.
 * @param hung the error for a guest that does nothing: one that is merely slow, under emulation, is waited for
 */
export function greet(machine: Greeted, hung: (reason: string) => Error): Promise<AgentClient> {
  const greeted = new Promise<AgentClient>((resolve, reject) => {
    let agent: AgentClient | undefined
    let isGreeted = false
    machine.listen(PORT_CONTROL, (socket) => {
      // One agent, one connection: another could only be the workload's.
      if (isGreeted) return void socket.destroy()
      // But a guest that waited too long for its connection gives it up, and makes another.
      agent?.destroy()
      const mine = (agent = new AgentClient(socket))
      mine.hello.then(
        () => {
          isGreeted = true
          resolve(mine)
        },
        (error: unknown) => {
          if (mine === agent && !mine.isLost) reject(error)
        },
      )
    })
    machine.listen(PORT_STREAM, (socket) => {
      if (agent) agent.acceptStream(socket)
      else socket.destroy()
    })
  })
  machine.start()
  return new Promise((resolve, reject) => {
    greeted.then(resolve, reject)
    watch(machine, greeted, (reason) => reject(hung(reason)))
  })
}

function watch(machine: Greeted, hello: Promise<unknown>, giveUp: (reason: string) => void): void {
  let seen = machine.work()
  const timer = setInterval(() => {
    const work = machine.work()
    if (work - seen < HELLO_WORK)
      giveUp(`the guest did nothing for ${HELLO_WINDOW / 1000} s, and its agent is not there`)
    seen = work
  }, HELLO_WINDOW)
  timer.unref()
  const stop = (): void => clearInterval(timer)
  void Promise.race([hello, machine.exited]).then(stop, stop)
}
