/** A processor's thread: apart from what it does, for who starts it before loading anything else. */
export const VCPU_WORKER = new URL('vcpu-worker.js', import.meta.url)
