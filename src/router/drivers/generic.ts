/**
 * Any driver whose handles name the logical volume: patterns extract volume group and logical volume, and Kubernetes'
 * own objects tell the node if the patterns do not.
 */
import { type HandlePattern, readHandle } from './handle-patterns.ts'
import { commonResources, snapshotFacts } from './common-objects.ts'
import { ambiguous, type Driver } from './driver.ts'

export function generic(driverName: string, patterns: readonly HandlePattern[]): Driver {
  return {
    resources: commonResources(driverName),
    locate(handle, find) {
      const read = readHandle(handle, patterns)
      const { volume, node, createdAt } = snapshotFacts(handle, find)
      if (read.node !== undefined && node !== undefined && read.node !== node) {
        throw ambiguous(handle, `node ${read.node} (its handle) and node ${node} (its volume)`)
      }
      return { node: read.node ?? node, handle: read.handle, origin: volume, createdAt }
    },
    whenGone: (handle) => readHandle(handle, patterns).handle
  }
}
