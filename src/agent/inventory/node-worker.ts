/**
 * Asks `systeminformation` for the node's facts and block devices, in a thread of its own: it runs programs, and blocks
 * its thread while it waits for some of them.
 */
import { parentPort } from 'node:worker_threads'
import si from 'systeminformation'
import type { BlockDevice } from './examination.ts'

/** The answers. */
export type NodeAnswer =
  { readonly of: 'system'; readonly system: SystemFacts } | { readonly of: 'devices'; readonly devices: BlockDevice[] }

export interface SystemFacts {
  readonly operatingSystem: string
  readonly virtualization: string
}

export type NodeQuestion = NodeAnswer['of']

async function system(): Promise<SystemFacts> {
  const [os, machine] = await Promise.all([si.osInfo(), si.system()])
  const operatingSystem = [os.distro, os.release].filter((each) => each && each !== 'unknown').join(' ')
  // In a recognised container, the container; otherwise the machine's maker, if it is virtual.
  const container = /container/i.test(machine.model) ? machine.model : ''
  return { operatingSystem, virtualization: container || (machine.virtual ? machine.virtualHost || 'virtual' : '') }
}

/** What lsblk calls devices of device-mapper. */
const mapped: ReadonlySet<string> = new Set(['dm', 'lvm', 'crypt', 'mpath'])

async function devices(): Promise<BlockDevice[]> {
  const listed = await si.blockDevices()
  // A device without a size is not set up yet.
  const inUse = listed.filter(({ size }) => size > 0)
  return inUse.map(({ name, device, type, size, fsType, mount, model }) => ({
    // lsblk lists devices of device-mapper by their names, not by their nodes under /dev.
    path: mapped.has(type) ? `/dev/mapper/${name}` : device || `/dev/${name}`,
    type,
    sizeBytes: size,
    fileSystem: fsType,
    mountedAt: mount,
    model: model.trim()
  }))
}

parentPort?.on('message', (question: NodeQuestion) => {
  void (async () => {
    const answer: NodeAnswer =
      question === 'system' ? { of: question, system: await system() } : { of: question, devices: await devices() }
    parentPort?.postMessage(answer)
  })()
})
