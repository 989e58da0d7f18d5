/**
 * OpenEBS LocalPV-LVM. A handle is VOLUME@SNAPSHOT; the LVMSnapshot SNAPSHOT has node and volume group. LVM reserves
 * names that begin with "snapshot", so the logical volume is called SNAPSHOT without that prefix. With a size
 * of its own (spec.snapSize) it is a classic snapshot, which the agent serves as well. (openebs/lvm-localpv:
 * pkg/apis/openebs.io/lvm/v1alpha1/lvmsnapshot.go, pkg/driver/controller.go, pkg/lvm/lvm_util.go)
 */
import { printable } from '../../handle.ts'
import { createdAt, textOf } from '../../kubernetes/object.ts'
import { agentHandle, byName, creation, type Driver, groupIn, malformed, notFound, notReady, single } from './driver.ts'

/** @param namespace where the driver keeps its objects; all namespaces unless given */
export function openebsLvm(namespace?: string): Driver {
  const scope = namespace === undefined ? '' : `/namespaces/${namespace}`
  return {
    resources: {
      lvmSnapshots: {
        path: `/apis/local.openebs.io/v1alpha1${scope}/lvmsnapshots`,
        keys: byName,
        fields: [
          ...[creation, ['metadata', 'labels', 'openebs.io/persistent-volume'], ['status', 'state']],
          ...['snapSize', 'volGroup', 'ownerNodeID'].map((field) => ['spec', field])
        ]
      }
    },
    locate(handle, find) {
      const { volume, snapshot } = parts(handle)
      const object = single(find('lvmSnapshots', snapshot), 'LVMSnapshot', handle)
      const of = object.metadata.labels?.['openebs.io/persistent-volume']
      if (of !== undefined && of !== volume) {
        throw notFound(`the LVMSnapshot ${printable(snapshot)} is of volume ${of}, not of ${printable(volume)}`)
      }
      const state = textOf(object, 'status', 'state')
      if (state !== 'Ready') throw notReady(handle, `its LVMSnapshot is in state ${state ?? 'unknown'}`)
      const group = textOf(object, 'spec', 'volGroup')
      if (group === undefined) throw notReady(handle, 'its LVMSnapshot names no volume group')
      return {
        node: textOf(object, 'spec', 'ownerNodeID'),
        handle: agentHandle(group, volumeName(snapshot), handle),
        origin: volume,
        createdAt: createdAt(object)
      }
    },
    whenGone(handle, target, find) {
      const { volume, snapshot } = parts(handle)
      if (find('lvmSnapshots', snapshot).length > 0) return undefined
      // Snapshots of one volume are in its group.
      return volume === target.origin ? agentHandle(groupIn(target), volumeName(snapshot), handle) : undefined
    }
  }
}

/** @throws DM_HANDLE_INVALID */
function parts(handle: string): { volume: string; snapshot: string } {
  const [volume, snapshot, ...rest] = handle.split('@')
  if (volume && snapshot && rest.length === 0) return { volume, snapshot }
  throw malformed(handle, 'it is not of the form VOLUME@SNAPSHOT')
}

/** The logical volume of an LVMSnapshot. */
function volumeName(snapshot: string): string {
  return snapshot.replace(/^snapshot-/, '')
}
