export * from './guest-memory.js'
export * from './device.js'
