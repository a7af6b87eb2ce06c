import fc from 'fast-check'
import t from 'tap'
import { ConsoleLog } from '../../src/vmm/devices/console-log.js'
import { powerRequest } from '../../src/vmm/devices/power.js'
import { Serial } from '../../src/vmm/devices/serial.js'

function port(): { serial: Serial; sent: number[]; edges: () => number } {
  const sent: number[] = []
  let edges = 0
  const serial = new Serial(
    (byte) => sent.push(byte),
    () => edges++,
  )
  return { serial, sent, edges: () => edges }
}

t.test('bytes go out, and there is always room for the next', async (t) => {
  const { serial, sent, edges } = port()
  serial.write(0, 0x41)
  t.same(sent, [0x41])
  t.equal(serial.read(5), 0x60)
  t.equal(edges(), 0, 'no interrupt that nobody asked for')
})

t.test('the divisor shares its registers with data and interrupts', async (t) => {
  const { serial, sent } = port()
  serial.write(3, 0x83)
  serial.write(0, 0x0c)
  serial.write(1, 0x01)
  t.equal(serial.read(0), 0x0c)
  t.equal(serial.read(1), 0x01)
  serial.write(3, 0x03)
  t.equal(serial.read(1), 0)
  t.same(sent, [])
})

t.test('the transmitter interrupts while that is on, and reading the cause ends it', async (t) => {
  const { serial, edges } = port()
  t.equal(serial.read(2), 0x01)
  serial.write(1, 0x02)
  t.equal(edges(), 1)
  t.equal(serial.read(2), 0x02)
  t.equal(serial.read(2), 0x01)
  serial.write(0, 0x41)
  t.equal(edges(), 2)
  serial.write(1, 0)
  t.equal(serial.read(2), 0x01)
  serial.write(2, 0x01)
  t.equal(serial.read(2), 0xc1, 'FIFOs, as a 16550A has them')
})

t.test('a driver finds it by loop-back', async (t) => {
  const { serial, sent } = port()
  serial.write(4, 0x1a)
  t.equal(serial.read(6), 0x90, 'RTS and OUT2 come back as CTS and DCD')
  serial.write(0, 0x55)
  t.equal(serial.read(5), 0x61)
  t.equal(serial.read(0), 0x55)
  t.equal(serial.read(5), 0x60)
  t.same(sent, [])
  serial.write(4, 0)
  t.equal(serial.read(6), 0xb0)
  serial.write(7, 0x5a)
  t.equal(serial.read(7), 0x5a)
})

t.test('the log keeps the last bytes, whatever the pieces', async (t) => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 40 }),
      fc.array(fc.uint8Array({ maxLength: 100 })),
      (capacity, parts) => {
        const log = new ConsoleLog(capacity)
        for (const part of parts) log.append(part)
        const all = Buffer.concat(parts)
        return log.total === all.length && Buffer.from(log.bytes()).equals(all.subarray(-capacity))
      },
    ),
  )
  t.pass()
})

t.test('only the right value on the right port ends a guest', async (t) => {
  t.equal(powerRequest(0x600, 0x34), 'poweroff')
  t.equal(powerRequest(0x600, 0x80), undefined)
  t.equal(powerRequest(0x600, 0x14), undefined)
  t.equal(powerRequest(0x601, 1), 'reset')
  t.equal(powerRequest(0x601, 0), undefined)
  t.equal(powerRequest(0x64, 0xfe), 'reset')
  t.equal(powerRequest(0x64, 0xd1), undefined)
})
