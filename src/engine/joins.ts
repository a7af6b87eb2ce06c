import { CoracleError } from '../errors.js'
import { processToJoin } from '../isolation/process/join.js'
import type { SandboxSpec } from '../isolation/sandbox.js'
import type { ContainerRecord, CreateRequest } from './record.js'

/** Finds a container's record. @throws CoracleError NO_SUCH_CONTAINER */
export type FindContainer = (reference: string) => ContainerRecord

/**
 * The containers that another names to be among their processes, or to share their memory, by their ids.
 * @throws CoracleError NO_SUCH_CONTAINER, INVALID_ARGUMENT where one cannot be joined, ever
 */
export function settleJoins(
  { pidContainer, ipcContainer }: CreateRequest,
  find: FindContainer,
): Pick<CreateRequest, 'pidContainer' | 'ipcContainer'> {
  const settle = (option: string, reference: string, why: (other: ContainerRecord) => string | undefined) => {
    const other = find(reference)
    const reason = other.spec.isolation === 'process' ? why(other) : "it is a microVM's own"
    if (reason === undefined) return other.id
    const name = reference.slice(0, 64)
    throw new CoracleError('INVALID_ARGUMENT', `${option} container:${name}: ${reason}`)
  }
  return {
    ...(pidContainer && {
      pidContainer: settle('--pid', pidContainer, ({ request }) =>
        request.hostNamespaces?.includes('pid') ? "its processes are among the host's" : undefined,
      ),
    }),
    ...(ipcContainer && {
      ipcContainer: settle('--ipc', ipcContainer, ({ request }) =>
        request.ipcShareable === true
          ? undefined
          : 'its shared memory is its own: it is shared by one that was created with --ipc shareable',
      ),
    }),
  }
}

/** Whose namespaces a container joins at this start. @throws CoracleError NO_SUCH_CONTAINER, CONFLICT where one does not run */
export function joinsOf(
  { request: { pidContainer, ipcContainer } }: ContainerRecord,
  find: FindContainer,
): SandboxSpec['joins'] {
  if (!pidContainer && !ipcContainer) return undefined
  return {
    ...(pidContainer && { pid: processToJoin(find(pidContainer).spec, 'the processes') }),
    ...(ipcContainer && { ipc: processToJoin(find(ipcContainer).spec, 'the shared memory') }),
  }
}
