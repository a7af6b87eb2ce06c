/** A split virtqueue (virtio 1.2 §2.7) over guest memory. */
export class Virtqueue {}
