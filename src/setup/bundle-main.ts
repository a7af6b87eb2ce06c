import { bundlePrograms } from './bundle.js'

/* The last part of `npm run build`. */
await bundlePrograms()
