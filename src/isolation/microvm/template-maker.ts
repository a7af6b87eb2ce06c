import { CoracleError } from '../../errors.js'
import { greet } from './greet.js'
import { KvmMachine, TOOLS } from './kvm-machine.js'
import type { MakerOrder } from './template.js'

/*
 * The process that makes a template: `template-maker.js ORDER`. It boots a guest with nothing of anybody's in it, has
 * its agent mount the tools, saves it and ends. What goes wrong is one line on stderr. Stdin is open for as long as
 * somebody waits for it.
 */
async function main(): Promise<void> {
  try {
    const { folder, memory, cpus, kernel, initramfs, tools } = JSON.parse(process.argv[2]!) as MakerOrder
    const machine = await KvmMachine.bare({ memory, cpus, kernel, initramfs, tools })
    const lost = machine.exited.then(({ reason }) => {
      throw new CoracleError('GUEST_FAILED', `${reason} (${machine.console.trim().split('\n').at(-1)})`)
    })
    const saved = (async () => {
      const agent = await greet(machine, (reason) => new CoracleError('GUEST_FAILED', reason))
      await agent.configure({ tools: TOOLS })
      await agent.rehearse()
      await machine.saveTemplate(folder)
    })()
    lost.catch(() => undefined)
    await Promise.race([saved, lost])
    // In good order: a thread that is cut off inside a system call can take the process down with an error.
    await machine.close()
    process.exit(0)
  } catch (error) {
    console.error(error instanceof Error ? error.message : String(error))
    process.exit(1)
  }
}

process.stdin.resume().on('end', () => process.exit(1))
void main()
