#!/usr/bin/env node
console.error('coracle: not built yet')
process.exitCode = 125
