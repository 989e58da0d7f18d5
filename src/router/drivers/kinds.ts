/** The known drivers, by their names in the configuration. */
import type { HandlePattern } from './handle-patterns.ts'
import { deckhouse } from './deckhouse.ts'
import type { Driver } from './driver.ts'
import { generic } from './generic.ts'
import { harvester } from './harvester.ts'
import { openebsLvm } from './openebs-lvm.ts'
import { legacyTopolvm, topolvm } from './topolvm.ts'

export const driverKinds = ['topolvm', 'openebs-lvm', 'harvester', 'deckhouse', 'generic'] as const
export type DriverKind = (typeof driverKinds)[number]

/** The kind that a CSI driver's name tells. */
export const kindsByName: Readonly<Record<string, DriverKind>> = {
  'topolvm.io': 'topolvm',
  [legacyTopolvm]: 'topolvm',
  'local.csi.openebs.io': 'openebs-lvm',
  'lvm.driver.harvesterhci.io': 'harvester',
  'local.csi.storage.deckhouse.io': 'deckhouse'
}

export interface DriverSettings {
  readonly driverName: string
  /** The namespace of the driver's own objects; all unless given. */
  readonly namespace?: string | undefined
  /** For `generic`. */
  readonly patterns: readonly HandlePattern[]
}

export function makeDriver(kind: DriverKind, { driverName, namespace, patterns }: DriverSettings): Driver {
  switch (kind) {
    case 'topolvm':
      return topolvm(driverName)
    case 'openebs-lvm':
      return openebsLvm(namespace)
    case 'harvester':
      return harvester(driverName)
    case 'deckhouse':
      return deckhouse()
    case 'generic':
      return generic(driverName, patterns)
  }
}
