/**
 * The scripts that run in the emulated host, for busybox's shell. Builtins where possible: under emulation each
 * process takes milliseconds.
 */

/** What a run hands to the scripts, as shell variables. */
export interface RunSettings {
  /** Of the host's folder in which the settings and the command are. */
  readonly folder: string
  /** Behind each stream's last byte. Only letters and digits. */
  readonly mark: string
  readonly release: string
  /** `lib/modules/<release>` on the host. */
  readonly modules: string
  /**
   * Folders that are fresh memory, outermost first, with what stays at its place in them; `all`: and links to what else
   * the host has there.
   */
  readonly scratch: readonly {
    readonly path: string
    readonly keep: readonly string[]
    readonly all: boolean
  }[]
  readonly writable: readonly string[]
  /** Modules to load before the command, by name. */
  readonly load: readonly string[]
}

/** Port numbers of the virtio-serial device, the same at both ends. */
export const PORTS = { control: 1, stdin: 2, stdout: 3, stderr: 4 } as const

/** /init: modules, the host's root below an overlay, and on to {@link stage2}. `modules` are paths in the initramfs. */
export const stage1 = (modules: readonly string[]): string => `#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
mount -t devtmpfs dev /dev
${modules.map((path) => `insmod ${path}`).join('\n')}
mkdir /host /upper /new
mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=512000 host /host || exec reboot -f
mount -t tmpfs -o size=75%,mode=755 upper /upper
mkdir /upper/up /upper/work
mount -t overlay -o lowerdir=/host,upperdir=/upper/up,workdir=/upper/work,redirect_dir=off,metacopy=off root /new || exec reboot -f
mount -t tmpfs -o mode=755 run /new/run
mkdir /new/run/lab
cp /bin/busybox /new/run/lab/busybox
read -r line < /proc/cmdline
folder=\${line##*coracle.lab=}
folder=\${folder%% *}
# Before anything is mounted over the folder.
cp /host$folder/settings /host$folder/command /host$folder/stage2 /new/run/lab/
mount --move /dev /new/dev
mount -t proc proc /new/proc
exec /bin/busybox switch_root /new /run/lab/busybox sh /run/lab/stage2
`

/** PID 1 once the root is the host's: mounts, devices, the command and its streams. */
export const stage2 = `. /run/lab/settings
bb=/run/lab/busybox
mount -t sysfs sys /sys
mkdir -p /dev/pts /dev/shm /dev/mqueue /dev/net /dev/mapper /dev/vfio
mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t mqueue mqueue /dev/mqueue
mount -t cgroup2 -o nsdelegate cgroup /sys/fs/cgroup
echo '+cpuset +cpu +io +memory +pids' > /sys/fs/cgroup/cgroup.subtree_control
ln -s /proc/self/fd /dev/fd
ln -s /proc/self/fd/0 /dev/stdin
ln -s /proc/self/fd/1 /dev/stdout
ln -s /proc/self/fd/2 /dev/stderr
mkdir -p /run/lock /run/lab/modules /run/lab/root
ln -s busybox /run/lab/modprobe
mount --bind / /run/lab/root
# Opening one of these loads its module, as does mounting a file system or making an nftables rule.
if mkdir -p /lib/modules/$release 2>/dev/null; then mount --bind $modules /lib/modules/$release; fi
echo /run/lab/modprobe > /proc/sys/kernel/modprobe
node() { [ -e $1 ] || mknod -m $2 $1 c $3 $4; }
node /dev/loop-control 660 10 237
node /dev/net/tun 666 10 200
node /dev/fuse 666 10 229
node /dev/vhost-net 600 10 238
node /dev/vhost-vsock 600 10 241
node /dev/vfio/vfio 666 10 196
for module in $load; do /run/lab/modprobe $module; done
scratch
for folder in $writable; do
  mount -t 9p -o trans=virtio,version=9p2000.L,cache=mmap,msize=512000 \${folder%%:*} \${folder#*:}
done
hostname lab
ip link set lo up
ulimit -n 1048576
ulimit -l unlimited
set -- /dev/vport*p1
port=\${1%1}
mkfifo /run/lab/in /run/lab/out /run/lab/err
# The host has gone, or wants an end.
exec 3<>\${port}1
{ $bb cat <&3 > /dev/null; echo b > /proc/sysrq-trigger; } &
pump() { { $bb cat $1; echo -n $mark; } > $2; }
$bb cat \${port}2 > /run/lab/in &
pump /run/lab/out \${port}3 &
out=$!
pump /run/lab/err \${port}4 &
err=$!
$bb setsid $bb sh /run/lab/command < /run/lab/in > /run/lab/out 2> /run/lab/err &
command=$!
wait $command
status=$?
# What the command left running must not keep its streams open.
for process in /proc/[0-9]*; do
  [ -e $process/exe ] || continue
  number=\${process#/proc/}
  read -r name < $process/comm
  case $number:$name in 1:*|*:busybox) ;; *) kill -9 $number 2>/dev/null ;; esac
done
wait $out $err
sync
echo exit $status >&3
# The host ends the machine; should it not, the watch above does.
while :; do sleep 60; done
`

/** Quotes a word for the shell. */
export const quote = (word: string): string => `'${word.replaceAll("'", `'\\''`)}'`

/** Writes the settings for {@link stage2}. */
export function settingsScript(settings: RunSettings): string {
  const scratch = settings.scratch.flatMap(({ path, keep, all }) => [
    `mkdir -p ${quote(path)}`,
    `mount -t tmpfs -o size=75%,mode=1777 scratch ${quote(path)}`,
    ...keep.flatMap((kept) => [
      `mkdir -p ${quote(kept)}`,
      `mount --bind ${quote(`/run/lab/root${kept}`)} ${quote(kept)}`,
    ]),
    ...(all ? [`ln -s /run/lab/root${quote(path)}/* ${quote(path)}/ 2>/dev/null`] : []),
  ])
  return [
    `mark=${settings.mark}`,
    `release=${quote(settings.release)}`,
    `modules=${quote(settings.modules)}`,
    `load=${quote(settings.load.join(' '))}`,
    `writable=${quote(settings.writable.map((path, index) => `w${index}:${path}`).join(' '))}`,
    `scratch() {`,
    ...scratch,
    ':',
    '}',
    '',
  ].join('\n')
}

/** Writes the script that becomes the command. @param program an absolute path, else the shell prefers its own */
export function commandScript(
  program: string,
  words: readonly string[],
  cwd: string,
  environment: NodeJS.ProcessEnv,
): string {
  const exports = Object.entries(environment)
    .filter(([name, value]) => value !== undefined && /^[A-Za-z_][A-Za-z0-9_]*$/.test(name))
    .map(([name, value]) => `export ${name}=${quote(value!)}`)
  return [
    ...exports,
    `cd ${quote(cwd)} || exit 125`,
    `exec ${[program, ...words].map(quote).join(' ')}`,
    '',
  ].join('\n')
}
