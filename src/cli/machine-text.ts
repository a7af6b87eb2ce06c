import type { DescribedFunction, DescribedVirtio, MachineDescription } from '../vmm/description.js'
import { showBinarySize, showSize } from './size.js'
import { table } from './table.js'

const CLASSES: Readonly<Record<string, string>> = {
  '060000': 'host bridge',
  '020000': 'network',
  '018000': 'storage',
  '078000': 'communication',
}

/** A machine for people: memory map, PCI tree, queues, exits. */
export function machineText({ state, cpus, memory, pci, exits, accesses }: MachineDescription): string {
  const parts = [
    `State: ${state}, ${cpus} vCPU${cpus === 1 ? '' : 's'}\n`,
    'Memory\n',
    indent(
      table([
        ['SLOT', 'ADDRESS', 'SIZE', 'ACCESS', 'WHAT'],
        ...memory.map(({ slot, address, size, readOnly, name }) => [
          ...[String(slot), address, showBinarySize(size), readOnly ? 'read' : 'read, write', name],
        ]),
      ]),
    ),
    'PCI bus 0\n',
    ...pci.map(functionText),
    'Exits\n',
    indent(counts(exits)),
    'Accesses\n',
    indent(counts(accesses)),
  ]
  return parts.join('')
}

function functionText({ slot, id, class: code, bars, virtio, memoryDecoded }: DescribedFunction): string {
  const place = bars.map(
    ({ index, address, size }) =>
      `BAR ${index} ${address ?? (memoryDecoded ? 'not placed' : 'off')}, ${showBinarySize(size)}`,
  )
  const what = virtio?.name ?? CLASSES[code] ?? `class ${code}`
  const head = `  00:${slot.toString(16).padStart(2, '0')}.0  ${id}  ${what}${place.length > 0 ? `  (${place.join('; ')})` : ''}\n`
  return virtio ? `${head}${indent(virtioText(virtio), 9)}` : head
}

function virtioText({ status, offered, features, msix, queues, metrics }: DescribedVirtio): string {
  const open = msix.vectors.filter(({ masked }) => !masked).length
  const lines = [
    `status ${status.join(' ') || 'none'}; features ${features} of ${offered}`,
    `MSI-X ${msix.enabled ? 'on' : 'off'}, ${open} of ${msix.vectors.length} vectors open`,
  ]
  if (metrics && metrics.failures > 0) lines.push(`failed ${metrics.failures} times`)
  const rows = queues.map(({ index, enabled, size, vector, nextAvailable, nextUsed, inFlight }) => {
    const counted = metrics?.queues[index]
    return [
      ...[String(index), enabled ? String(size) : 'off', vector === undefined ? '-' : String(vector)],
      nextAvailable === undefined ? '-' : `${nextAvailable}/${nextUsed}`,
      inFlight === undefined ? '-' : String(inFlight),
      ...(counted
        ? [
            ...[String(counted.depth), String(counted.requests), String(counted.errors)],
            ...[showSize(counted.bytesOut), showSize(counted.bytesIn), median(counted.latency)],
          ]
        : []),
    ]
  })
  const head = ['QUEUE', 'SIZE', 'VECTOR', 'AVAIL/USED', 'IN FLIGHT']
  const counted = metrics ? ['DEPTH', 'REQUESTS', 'ERRORS', 'FROM GUEST', 'TO GUEST', 'MEDIAN'] : []
  return `${lines.join('\n')}\n${table([[...head, ...counted], ...rows])}`
}

/** Under what time half of the requests were. @param histogram requests under 1, 2, 4, … µs */
function median(histogram: readonly number[]): string {
  const half = histogram.reduce((sum, count) => sum + count, 0) / 2
  let seen = 0
  for (const [i, count] of histogram.entries()) {
    seen += count
    if (seen >= half && half > 0) return `<${2 ** i} µs`
  }
  return '-'
}

function counts(all: Readonly<Record<string, number>>): string {
  const some = Object.entries(all).filter(([, count]) => count > 0)
  return some.length === 0 ? 'none\n' : `${some.map(([name, count]) => `${name} ${count}`).join(', ')}\n`
}

const indent = (text: string, by = 2): string => text.replace(/^(?=.)/gm, ' '.repeat(by))
