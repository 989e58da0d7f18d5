/**
 * Deckhouse's sds-local-volume. A handle is the name of an LVMLogicalVolumeSnapshot, which has everything.
 * (deckhouse/sds-local-volume: images/sds-local-volume-csi/driver/controller_snapshots_ee.go, and the CRD beside its
 * tests)
 */
import { createdAt, textOf } from '../../kubernetes/object.ts'
import { agentHandle, byName, creation, type Driver, groupIn, notReady, single } from './driver.ts'

export function deckhouse(): Driver {
  return {
    resources: {
      snapshots: {
        path: '/apis/storage.deckhouse.io/v1alpha1/lvmlogicalvolumesnapshots',
        keys: byName,
        fields: [
          ...[creation, ['spec', 'actualSnapshotNameOnTheNode'], ['spec', 'lvmLogicalVolumeName']],
          ...['phase', 'reason', 'actualVGNameOnTheNode', 'nodeName'].map((field) => ['status', field])
        ]
      }
    },
    locate(handle, find) {
      const object = single(find('snapshots', handle), 'LVMLogicalVolumeSnapshot', handle)
      const phase = textOf(object, 'status', 'phase')
      if (phase !== 'Created') {
        const reason = textOf(object, 'status', 'reason')
        throw notReady(handle, `its phase is ${phase ?? 'unknown'}${reason === undefined ? '' : ` (${reason})`}`)
      }
      const group = textOf(object, 'status', 'actualVGNameOnTheNode')
      if (group === undefined) throw notReady(handle, 'its status names no volume group')
      // The driver's own default.
      const name = textOf(object, 'spec', 'actualSnapshotNameOnTheNode') ?? object.metadata.name
      return {
        node: textOf(object, 'status', 'nodeName'),
        handle: agentHandle(group, name, handle),
        origin: textOf(object, 'spec', 'lvmLogicalVolumeName'),
        createdAt: createdAt(object)
      }
    },
    // The driver's own default; a snapshot of another name on its node is not found, and its base refused.
    whenGone(handle, target, find) {
      return find('snapshots', handle).length === 0 ? agentHandle(groupIn(target), handle, handle) : undefined
    }
  }
}
