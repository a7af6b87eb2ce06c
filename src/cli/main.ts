#!/usr/bin/env -S node --
// The dashes: without them Node 20 takes --env-file for its own, wherever it stands.
import { programFile } from '../programs.js'

await import(programFile('cli'))
