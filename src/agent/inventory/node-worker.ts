/**
 * Asks `systeminformation` for what the node is and which block devices it has, in a thread of its own: it runs programs, and waits
 * for some of them without letting go of its thread.
 */
import { parentPort } from 'node:worker_threads'
import si from 'systeminformation'
import type { BlockDevice } from './examination.ts'

/** What comes back: what the questions were, answered. */
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
  // In a container that says so, the container; else the machine's maker, if it is a virtual one.
  const container = /container/i.test(machine.model) ? machine.model : ''
  return { operatingSystem, virtualization: container || (machine.virtual ? machine.virtualHost || 'virtual' : '') }
}

/** What lsblk calls devices of device-mapper. */
const mapped: ReadonlySet<string> = new Set(['dm', 'lvm', 'crypt', 'mpath'])

async function devices(): Promise<BlockDevice[]> {
  const listed = await si.blockDevices()
  // What has no size is a device of which nothing has been made yet.
  const inUse = listed.filter(({ size }) => size > 0)
  return inUse.map(({ name, device, type, size, fsType, mount, model }) => ({
    // lsblk knows devices of device-mapper by their names, which is not what they are called under /dev.
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
