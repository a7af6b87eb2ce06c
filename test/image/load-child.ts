import { createReadStream } from 'node:fs'
import { ImageStore } from '../../src/image/store.js'

/* Loads an archive over and over until it is killed; says so on stdout at each step. For store.test.ts. */
const [root, archive] = process.argv.slice(2)
const store = await ImageStore.open(root)
for (;;) {
  const [image] = await store.load(createReadStream(archive!), {
    onProgress: ({ phase }) => process.stdout.write(`${phase}\n`),
  })
  process.stdout.write('loaded\n')
  store.remove(image!.id, { force: true })
}
