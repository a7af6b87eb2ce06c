/** The thread of the devices: apart from what it does, for who starts it before loading anything else. */
export const DEVICE_WORKER = new URL('device-worker.js', import.meta.url)
/** A processor's thread. */
export const PROCESSOR_WORKER = new URL('processor-worker.js', import.meta.url)
