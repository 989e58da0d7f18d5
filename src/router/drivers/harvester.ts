/**
 * Harvester's LVM driver. A handle is the CSI name of the snapshot; the logical volume has the same name after "lvm-".
 * The driver has no objects of its own: node and volume group are in the PersistentVolume. Once that is gone, all nodes
 * are asked. Snapshots of its striped volumes are classic ones, which the agent serves as well.
 * (harvester/csi-driver-lvm: pkg/lvm/controllerserver.go, pkg/lvm/lvm.go)
 */
import { commonResources, snapshotFacts } from './common-objects.ts'
import { agentHandle, anyGroup, type Driver, groupIn } from './driver.ts'

export function harvester(driverName: string): Driver {
  return {
    resources: commonResources(driverName),
    locate(handle, find) {
      const { volume, node, attributes, createdAt } = snapshotFacts(handle, find)
      const { vgName = anyGroup } = attributes
      return { node, handle: agentHandle(vgName, `lvm-${handle}`, handle), origin: volume, createdAt }
    },
    // Without its content nothing names its volume, which is in the target's group.
    whenGone: (handle, target) => agentHandle(groupIn(target), `lvm-${handle}`, handle)
  }
}
