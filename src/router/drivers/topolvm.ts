/**
 * TopoLVM, and OpenShift's LVMS, which contains it. A handle is the `status.volumeID` of a LogicalVolume, which is also
 * the logical volume's name on the node. Only the node knows the volume group (its device class is looked up in lvmd's
 * configuration there). (topolvm/topolvm: api/v1/logicalvolume_types.go,
 * internal/driver/internal/k8s/logicalvolume_service.go)
 */
import { printable } from '../../handle.ts'
import { createdAt, textOf } from '../../kubernetes/object.ts'
import { agentHandle, anyGroup, creation, type Driver, notFound, single } from './driver.ts'

/** Its name until 2022, and still the name of an installation with USE_LEGACY; so is the group of its resources. */
export const legacyTopolvm = 'topolvm.cybozu.com'

export function topolvm(driverName: string): Driver {
  const group = driverName === legacyTopolvm ? legacyTopolvm : 'topolvm.io'
  return {
    resources: {
      logicalVolumes: {
        path: `/apis/${group}/v1/logicalvolumes`,
        // There is none before the node has made the logical volume.
        keys: (object) => [textOf(object, 'status', 'volumeID')].filter((id) => id !== undefined),
        fields: [
          ...[creation, ['status', 'volumeID']],
          ...[
            ['spec', 'source'],
            ['spec', 'accessType'],
            ['spec', 'nodeName']
          ]
        ]
      }
    },
    locate(handle, find) {
      const object = single(find('logicalVolumes', handle), 'LogicalVolume', handle)
      const source = textOf(object, 'spec', 'source')
      // Volumes are LogicalVolumes as well; those that were restored or cloned have a source, and are writable.
      if (source === undefined || textOf(object, 'spec', 'accessType') === 'rw') {
        throw notFound(`${printable(handle)} is the volume ${object.metadata.name}, not a snapshot`)
      }
      return {
        node: textOf(object, 'spec', 'nodeName'),
        handle: agentHandle(anyGroup, handle, handle),
        origin: source,
        createdAt: createdAt(object)
      }
    },
    whenGone(handle, _target, find) {
      return find('logicalVolumes', handle).length === 0 ? agentHandle(anyGroup, handle, handle) : undefined
    }
  }
}
