export { type SetName, type PackageSet, SETS } from './sets.js'
export { type Command, type SysrootOptions, Sysroot, cached, sysroot, toolCommand } from './sysroot.js'
export { withFileLock } from './lock.js'
export { type Output, run } from './run.js'
