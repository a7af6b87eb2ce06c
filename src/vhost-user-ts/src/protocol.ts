/** Request codes of the frontend (QEMU docs/interop/vhost-user.rst, "Front-end message types"). */
export const VHOST_USER_GET_FEATURES = 1
export const VHOST_USER_SET_FEATURES = 2
export const VHOST_USER_SET_OWNER = 3
export const VHOST_USER_RESET_OWNER = 4
export const VHOST_USER_SET_MEM_TABLE = 5
export const VHOST_USER_SET_VRING_NUM = 8
export const VHOST_USER_SET_VRING_ADDR = 9
export const VHOST_USER_SET_VRING_BASE = 10
export const VHOST_USER_GET_VRING_BASE = 11
export const VHOST_USER_SET_VRING_KICK = 12
export const VHOST_USER_SET_VRING_CALL = 13
export const VHOST_USER_SET_VRING_ERR = 14
export const VHOST_USER_GET_PROTOCOL_FEATURES = 15
export const VHOST_USER_SET_PROTOCOL_FEATURES = 16
export const VHOST_USER_GET_QUEUE_NUM = 17
export const VHOST_USER_SET_VRING_ENABLE = 18
export const VHOST_USER_SET_BACKEND_REQ_FD = 21
export const VHOST_USER_GET_CONFIG = 24
export const VHOST_USER_SET_CONFIG = 25
export const VHOST_USER_GET_INFLIGHT_FD = 31
export const VHOST_USER_SET_INFLIGHT_FD = 32
export const VHOST_USER_RESET_DEVICE = 34
export const VHOST_USER_GET_MAX_MEM_SLOTS = 36
export const VHOST_USER_ADD_MEM_REG = 37
export const VHOST_USER_REM_MEM_REG = 38
export const VHOST_USER_SET_STATUS = 39
export const VHOST_USER_GET_STATUS = 40
/** Request code of the backend, on the channel of VHOST_USER_SET_BACKEND_REQ_FD. */
export const VHOST_USER_BACKEND_CONFIG_CHANGE_MSG = 2

/** A feature bit of virtio's space that stands for the protocol's own features. */
export const VHOST_USER_F_PROTOCOL_FEATURES = 1n << 30n
/** "Protocol features": several queues, and how many. */
export const VHOST_USER_PROTOCOL_F_MQ = 1n << 0n
/** A sender may ask for an acknowledgement of any request: zero, or else it failed. */
export const VHOST_USER_PROTOCOL_F_REPLY_ACK = 1n << 3n
/** The backend has a channel for requests of its own. */
export const VHOST_USER_PROTOCOL_F_BACKEND_REQ = 1n << 5n
/** The configuration space lies with the backend. */
export const VHOST_USER_PROTOCOL_F_CONFIG = 1n << 9n
/** Which requests are in flight stands in memory that outlives the backend. */
export const VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD = 1n << 12n
export const VHOST_USER_PROTOCOL_F_RESET_DEVICE = 1n << 13n
/** Memory regions come and go one by one. */
export const VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS = 1n << 15n
/** The device's status (virtio 1.2 §2.1) is told and asked. */
export const VHOST_USER_PROTOCOL_F_STATUS = 1n << 16n

/** In the payload of VHOST_USER_SET_VRING_KICK, CALL and ERR: no descriptor comes with it. */
export const VHOST_USER_VRING_NOFD_MASK = 0x100
export const VHOST_USER_VRING_INDEX_MASK = 0xff

/** Bits of the device's status (virtio 1.2 §2.1). */
export const VIRTIO_CONFIG_S_ACKNOWLEDGE = 1
export const VIRTIO_CONFIG_S_DRIVER = 2
export const VIRTIO_CONFIG_S_DRIVER_OK = 4
export const VIRTIO_CONFIG_S_FEATURES_OK = 8
export const VIRTIO_CONFIG_S_NEEDS_RESET = 64
