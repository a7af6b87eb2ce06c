import { programPath } from '../../programs.js'
import type { OciConfig } from '../sandbox.js'
import { BOX_LIBRARIES, BOX_NODE, type BoxRoot, boxPath } from './root.js'
import { BOX_SECCOMP } from './seccomp.js'

/** The descriptor at which a box finds its end of the hand-over's socket. */
export const HANDOVER_FD = 3

/**
 * Node's flags. None of V8's: with any that is not its default, V8 takes the compiled form of Node's own modules for
 * another's and compiles them anew, in each thread, which is half of what a start would take. The heaps of the threads
 * are bounded where they are made; the process as a whole, whatever the guest sends, by its cgroup.
 */
export const NODE_FLAGS = ['--no-warnings']
const NO_CAPABILITIES = { bounding: [], effective: [], permitted: [], inheritable: [], ambient: [] }
const QUIET = ['nosuid', 'noexec', 'nodev']

/**
 * The OCI configuration of a box: every namespace of its own and nothing in them, no capabilities, and root in it is
 * nobody outside.
 * @param id user and group on the host
 * @param entry the program, as the box sees it; else a microVM's
 */
export function boxConfig(root: BoxRoot, id: number, entry = boxPath(programPath('box'))): OciConfig {
  const mapping = [{ containerID: 0, hostID: id, size: 1 }]
  return {
    ociVersion: '1.0.2',
    process: {
      user: { uid: 0, gid: 0 },
      args: [BOX_NODE, ...NODE_FLAGS, entry],
      env: [`LD_LIBRARY_PATH=${BOX_LIBRARIES}`, 'HOME=/tmp', 'OPENSSL_CONF=/dev/null'],
      cwd: '/',
      capabilities: NO_CAPABILITIES,
      noNewPrivileges: true,
      rlimits: [
        { type: 'RLIMIT_CORE', soft: 0, hard: 0 },
        { type: 'RLIMIT_NOFILE', soft: 4096, hard: 4096 },
      ],
      // Before the programs of the host, after the daemon.
      oomScoreAdj: 200,
    },
    root: { path: root.path, readonly: true },
    hostname: 'box',
    mounts: [
      { destination: '/proc', type: 'proc', source: 'proc', options: QUIET },
      // The runtime puts null, zero, full, random, urandom and tty there; /dev/kvm comes as a descriptor.
      {
        destination: '/dev',
        type: 'tmpfs',
        source: 'tmpfs',
        options: ['nosuid', 'noexec', 'mode=755', 'size=64k'],
      },
      {
        destination: '/tmp',
        type: 'tmpfs',
        source: 'tmpfs',
        options: [...QUIET, 'mode=700', 'size=16m', 'nr_inodes=64'],
      },
      ...root.binds.map(({ source, target }) => ({
        destination: target,
        type: 'bind',
        source,
        options: ['bind', 'ro', 'nosuid', 'nodev'],
      })),
    ],
    linux: {
      uidMappings: mapping,
      gidMappings: mapping,
      namespaces: ['user', 'mount', 'network', 'pid', 'ipc', 'uts', 'cgroup'].map((type) => ({ type })),
      seccomp: BOX_SECCOMP,
      maskedPaths: ['/proc/acpi', '/proc/kcore', '/proc/keys', '/proc/sched_debug', '/proc/timer_list'],
      readonlyPaths: ['/proc/bus', '/proc/fs', '/proc/irq', '/proc/sys', '/proc/sysrq-trigger'],
    },
  }
}
