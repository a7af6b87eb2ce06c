export {
  type WantedDevice,
  checkUnclaimed,
  claimDevices,
  claimInterface,
  claimedDevices,
  devicesOf,
  releaseDevices,
} from './claims.js'
export { HostPci, type HostPciFunction } from './pci.js'
export {
  type PhysicalFunction,
  type VirtualFunction,
  createFunctions,
  deleteFunctions,
  physicalFunction,
  physicalFunctions,
} from './physical-function.js'
export { NO_MAC, type PortSettings, getPort, setPort } from './port-settings.js'
