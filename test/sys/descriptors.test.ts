import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, readdirSync, rmSync, statSync } from 'node:fs'
import { constants, tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import {
  EPOLLHUP,
  EPOLLIN,
  EPOLLOUT,
  Epoll,
  EventFd,
  FALLOC_FL_KEEP_SIZE,
  FALLOC_FL_PUNCH_HOLE,
  Fd,
  IoVector,
  LOCK_EX,
  LOCK_NB,
  Mapping,
  O_CREAT,
  O_DIRECTORY,
  O_EXCL,
  O_RDONLY,
  O_RDWR,
  SHUT_WR,
  SysError,
  TimerFd,
  accept,
  connectUnix,
  listenUnix,
  memfd,
  receiveWithFds,
  sendWithFds,
  shutdown,
  socketPair,
} from '@coracle/sys'

const folder = mkdtempSync(join(tmpdir(), 'coracle-sys-'))
t.teardown(() => rmSync(folder, { recursive: true }))
const openFds = (): number => readdirSync('/proc/self/fd').length
const text = (bytes: Uint8Array): string => Buffer.from(bytes).toString()

t.test('a descriptor', (t) => {
  const path = join(folder, 'file')
  using fd = Fd.open(path, O_RDWR | O_CREAT | O_EXCL)
  t.throws(() => Fd.open(path, O_RDWR | O_CREAT | O_EXCL), {
    name: 'SysError',
    code: 'EEXIST',
    errno: constants.errno.EEXIST,
    syscall: 'open',
    message: `EEXIST: open ${path}`,
  })
  t.equal(fd.write(Buffer.from('hello')), 5)
  t.equal(fd.pwrite(Buffer.from('J'), 0), 1)
  const bytes = new Uint8Array(8)
  t.equal(fd.pread(bytes, 0), 5)
  t.equal(text(bytes.subarray(0, 5)), 'Jello')
  t.equal(fd.pread(bytes, 5), 0, 'the end')
  t.equal(fd.read(bytes), 0, 'the end')
  fd.truncate(3)
  t.equal(statSync(path).size, 3)
  fd.allocate(0, 0, 8192)
  fd.dataSync()
  fd.allocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096)
  t.equal(fd.pread(bytes, 0), 8)
  t.same(bytes, new Uint8Array(8), 'the hole reads as zeros')

  t.ok(fd.lock(LOCK_EX | LOCK_NB))
  using other = Fd.open(path, O_RDONLY)
  t.notOk(other.lock(LOCK_EX | LOCK_NB), 'another has it')
  t.throws(() => other.write(bytes), { code: 'EBADF' }, 'opened for reading')
  using copy = fd.duplicate()
  t.not(copy.number, fd.number)

  const taken = copy.release()
  t.ok(copy.closed)
  copy.close()
  const again = new Fd(taken)
  t.equal(again.pread(bytes, 0), 8, 'release keeps it open')
  again.close()
  again.close()
  t.equal(again.number, -1)
  t.throws(() => again.pread(bytes, 0), { code: 'EBADF' })
  t.throws(() => again.ioctl(0xae00), { code: 'EBADF', syscall: 'ioctl' })
  t.throws(() => fd.ioctl(0xae00, 0, 'KVM_GET_API_VERSION'), {
    code: 'ENOTTY',
    syscall: 'KVM_GET_API_VERSION',
  })
  t.throws(() => fd.read(0n), TypeError, 'an address needs a length')
  t.throws(() => Fd.open(path, O_DIRECTORY), { code: 'ENOTDIR' })
  t.end()
})

t.test('descriptors of a block close at its end', (t) => {
  const before = openFds()
  {
    using _file = Fd.open('/proc/self/status', O_RDONLY)
    using _event = EventFd.create()
    using _timer = new TimerFd()
    using _loop = new Epoll()
    using _memory = memfd('test', 4096)
    t.equal(openFds(), before + 5)
  }
  t.equal(openFds(), before)
  t.end()
})

t.test('they are closed in a program that is started', (t) => {
  using event = EventFd.create()
  using memory = memfd('test', 4096)
  const [a, b] = socketPair()
  for (const number of [event.number, memory.number, a.number, b.number]) {
    using info = Fd.open(`/proc/self/fdinfo/${number}`, O_RDONLY)
    const bytes = new Uint8Array(200)
    const flags = /flags:\s*0?(\d+)/.exec(text(bytes.subarray(0, info.read(bytes))))![1]!
    t.ok(parseInt(flags, 8) & 0o2000000, `O_CLOEXEC on ${number}`)
  }
  a.close()
  b.close()
  t.end()
})

t.test('vectors', (t) => {
  using mapping = Mapping.create({ length: 8192 })
  using file = memfd('test', 0)
  mapping.bytes().set(Buffer.from('oneTWOthree'), 100)
  const at = (offset: number): bigint => mapping.address + BigInt(offset)
  const vector = new IoVector(3).push(at(100), 3).push(at(106), 5)
  t.equal(vector.total, 8)
  t.equal(file.writev(vector), 8)
  vector.clear().push(at(4096), 4).push(at(5000), 10)
  t.equal(file.preadv(vector, 0), 8)
  t.equal(text(mapping.bytes(4096, 4)), 'onet')
  t.equal(text(mapping.bytes(5000, 4)), 'hree')
  t.equal(file.pwritev(new IoVector(1).push(at(103), 3), 8), 3)
  t.equal(file.preadv(new IoVector(1).push(at(0), 3), 8), 3)
  t.equal(text(mapping.bytes(0, 3)), 'TWO')
  t.throws(() => vector.push(0n, 1).push(0n, 1), RangeError)
  t.ok(vector.full)
  t.throws(() => file.preadv(new IoVector(1).push(8n, 8), 0), { code: 'EFAULT' }, 'a bad address is no crash')
  t.equal(new IoVector().clear().count, 0)
  t.end()
})

t.test('an eventfd', (t) => {
  using event = EventFd.create()
  t.notOk(event.drain())
  event.signal()
  event.signal()
  t.ok(event.drain())
  t.notOk(event.drain())
  event.fd.write(new BigUint64Array([0xffff_ffff_ffff_fffen]))
  event.signal()
  t.ok(event.drain(), 'a full counter does not block the writer')
  event.close()
  t.throws(() => event.signal(), { code: 'EBADF' })
  t.end()
})

t.test('a timer', (t) => {
  using timer = new TimerFd()
  using loop = new Epoll()
  let fired = 0
  loop.add(timer.fd, EPOLLIN, () => {
    t.ok(timer.drain())
    if (++fired === 3) loop.stop()
  })
  timer.set(1, 1)
  loop.run()
  t.equal(fired, 3)
  timer.set(0)
  timer.drain()
  t.notOk(timer.drain(), 'disarmed')
  timer.set(0.25)
  t.equal(loop.wait(20_000), 1, 'less than a millisecond')
  timer.set(999.9999999)
  timer.set(1e-9)
  t.equal(loop.wait(20_000), 1, 'nor less than a nanosecond')
  t.throws(() => timer.set(-1), RangeError)
  t.throws(() => timer.set(NaN), RangeError)
  t.end()
})

t.test('a loop', (t) => {
  using loop = new Epoll()
  const [a, b] = socketPair()
  t.equal(loop.wait(0), 0)
  let seen: number[] = []
  loop.add(a, EPOLLIN | EPOLLOUT, (events) => seen.push(events))
  loop.wait(0)
  t.same(seen, [EPOLLOUT])
  loop.modify(a, EPOLLIN)
  t.equal(loop.wait(0), 0)
  b.write(Buffer.from('x'))
  seen = []
  loop.wait(0)
  loop.wait(0)
  t.same(seen, [EPOLLIN, EPOLLIN], 'level-triggered')
  t.throws(() => loop.add(a, EPOLLIN, () => undefined), { code: 'EEXIST' })
  a.read(new Uint8Array(1))
  b.close()
  seen = []
  loop.wait(0)
  t.ok(seen[0]! & EPOLLHUP)
  loop.remove(a)
  loop.remove(a)
  t.equal(loop.wait(0), 0)
  t.throws(() => loop.modify(a, EPOLLIN), { code: 'ENOENT' })
  a.close()
  t.throws(() => loop.add(a, EPOLLIN, () => undefined), { code: 'EBADF' })
  using file = memfd('test', 0)
  t.throws(() => loop.add(file, EPOLLIN, () => undefined), { code: 'EPERM' }, 'a file cannot be waited for')
  t.end()
})

t.test('a handler removes another that is ready in the same round', (t) => {
  using loop = new Epoll()
  using first = EventFd.create()
  using second = EventFd.create()
  const called: string[] = []
  const other = { first: second, second: first }
  for (const [name, event] of Object.entries({ first, second })) {
    event.signal()
    loop.add(event.fd, EPOLLIN, () => {
      called.push(name)
      loop.remove(other[name as 'first'].fd)
    })
  }
  loop.wait(0)
  t.equal(called.length, 1, 'whose handler is not called any more')
  t.end()
})

t.test('a descriptor number that is used again in the same round', (t) => {
  using loop = new Epoll()
  const events = [EventFd.create(), EventFd.create()]
  const wrong: string[] = []
  let called = 0
  events.forEach((event, i) => {
    event.signal()
    loop.add(event.fd, EPOLLIN, () => {
      called++
      const victim = events[1 - i]!
      const number = victim.number
      loop.remove(victim.fd)
      victim.close()
      const fresh = EventFd.create()
      events.push(fresh)
      t.equal(fresh.number, number, 'the kernel gives the lowest number')
      loop.add(fresh.fd, EPOLLIN, () => wrong.push('called for an event of its forerunner'))
    })
  })
  loop.wait(0)
  t.equal(called, 1)
  t.same(wrong, [])
  events.forEach((event) => event.close())
  t.end()
})

t.test('a handler that throws leaves the loop usable', (t) => {
  using loop = new Epoll()
  using event = EventFd.create()
  event.signal()
  let calls = 0
  loop.add(event.fd, EPOLLIN, () => {
    if (calls++ === 0) throw new Error('a bug')
    event.drain()
  })
  t.throws(() => loop.wait(0), /a bug/)
  t.equal(loop.wait(0), 1)
  t.equal(loop.wait(0), 0)
  t.end()
})

t.test('Unix sockets', (t) => {
  const path = join(folder, 'socket')
  using listener = listenUnix(path)
  t.equal(accept(listener), undefined)
  t.throws(() => listenUnix(path), { code: 'EADDRINUSE' })
  const client = connectUnix(path)
  const server = accept(listener)!
  const bytes = new Uint8Array(16)
  t.equal(server.read(bytes), -1, 'would block')
  client.write(Buffer.from('hi'))
  t.equal(server.read(bytes), 2)
  shutdown(client, SHUT_WR)
  t.equal(server.read(bytes), 0, 'half closed')
  server.write(Buffer.from('bye'))
  t.equal(client.read(bytes), 3)
  server.close()
  shutdown(client, SHUT_WR)
  t.throws(() => client.write(bytes), { code: 'EPIPE' })
  client.close()
  t.throws(() => shutdown(client, SHUT_WR), { code: 'EBADF' })
  t.throws(() => connectUnix(join(folder, 'none')), { code: 'ENOENT' })
  t.throws(() => connectUnix(join(folder, 'x'.repeat(120))), { code: 'ENAMETOOLONG' })
  t.throws(() => connectUnix(''), { code: 'EINVAL' })
  t.end()
})

t.test('descriptors beside the bytes', (t) => {
  const before = openFds()
  const [a, b] = socketPair()
  const bytes = new Uint8Array(16)
  t.same(receiveWithFds(b, bytes), { length: -1, fds: [] })
  {
    using memory = memfd('test', 4096)
    memory.pwrite(Buffer.from('shared'), 0)
    t.equal(sendWithFds(a, Buffer.from('take'), [memory, memory]), 4)
  }
  const got = receiveWithFds(b, bytes)
  t.equal(text(bytes.subarray(0, got.length)), 'take')
  t.equal(got.fds.length, 2)
  t.equal(got.fds[1]!.pread(bytes, 0, 6), 6)
  t.equal(text(bytes.subarray(0, 6)), 'shared')
  got.fds.forEach((fd) => fd.close())

  sendWithFds(a, Buffer.from('plain'))
  t.match(receiveWithFds(b, bytes), { length: 5, fds: [] })

  using memory = memfd('test', 0)
  const many = Array<Fd>(32).fill(memory)
  t.throws(() => sendWithFds(a, bytes, [...many, memory]), RangeError)
  sendWithFds(a, Buffer.from('max'), many)
  const max = receiveWithFds(b, bytes)
  t.equal(max.fds.length, 32)
  max.fds.forEach((fd) => fd.close())

  t.throws(() => sendWithFds(a, bytes, [new Fd(-1)]), { code: 'EBADF' })
  a.close()
  t.match(receiveWithFds(b, bytes), { length: 0, fds: [] }, 'the end')
  t.throws(() => sendWithFds(b, bytes), { code: 'EPIPE' }, 'and no SIGPIPE')
  b.close()
  t.equal(openFds(), before + 1, 'none is left open')
  t.end()
})

t.test('more descriptors than fit are an error, and none stays open', (t) => {
  const [a, b] = socketPair()
  const bytes = new Uint8Array(16)
  sendWithFds(a, Buffer.from('x'), Array<Fd>(32).fill(a))
  const before = openFds()
  const [, soft] = /Max open files +(\d+)/.exec(readFileSync('/proc/self/limits', 'utf8'))!
  const limit = (files: number | string): unknown =>
    execFileSync('prlimit', ['--pid', String(process.pid), `--nofile=${files}:`], { stdio: 'ignore' })
  limit(before + 8)
  try {
    t.throws(() => receiveWithFds(b, bytes), { code: 'EMSGSIZE', syscall: 'recvmsg' })
  } finally {
    limit(soft!)
  }
  t.equal(openFds(), before)
  a.close()
  b.close()
  t.end()
})

t.test('an errno without a name', (t) => {
  t.equal(new SysError(9999, 'call').code, 'E9999')
  t.equal(new SysError(15, 'mount').code, 'ENOTBLK', 'Node has no name for it')
  t.equal(new SysError(2, 'call', 'what').message, 'ENOENT: call what')
  t.end()
})
