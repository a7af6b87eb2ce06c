import { closeSync, openSync, readFileSync } from 'node:fs'
import { Kvm } from '../../src/kvm/index.js'

/** Runs in the lab and prints what it finds there, as one line of JSON. */
const devices = [
  '/dev/loop-control',
  '/dev/net/tun',
  '/dev/vhost-net',
  '/dev/vhost-vsock',
  '/dev/vfio/vfio',
].filter((path) => {
  try {
    closeSync(openSync(path, 'r+'))
    return true
  } catch {
    return false
  }
})

let vm = false
{
  using kvm = Kvm.open()
  using machine = kvm.createVm()
  vm = machine !== undefined
}
console.log(
  JSON.stringify({
    svm: / svm /.test(readFileSync('/proc/cpuinfo', 'utf8')),
    vm,
    devices,
    controllers: readFileSync('/sys/fs/cgroup/cgroup.subtree_control', 'utf8').trim(),
  }),
)
