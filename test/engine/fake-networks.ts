import type { Attached } from '../../src/network/networks.js'
import { Networks } from '../../src/network/networks.js'

/** Networks that keep their records, and make nothing of them on the host. */
export class FakeNetworks extends Networks {
  override async attach(): Promise<Attached> {
    return { run: undefined, network: undefined }
  }
  override async launched(): Promise<void> {}
  override async detach(): Promise<void> {}
}
