/** What every change to a tracked volume works with: the catalog, device-mapper, the check of its history, the log. */
import type { Logger } from 'pino'
import type { DeviceMapper } from '../../../../native/device-mapper.ts'
import type { Catalog } from '../../catalog/catalog.ts'
import type { HistoryCheck } from './history-check.ts'
import type { TrackedMachine } from './machine.ts'

export interface VolumeParts {
  readonly catalog: Pick<Catalog, 'path' | 'eraVolumes'>
  readonly deviceMapper: DeviceMapper
  readonly machine: TrackedMachine
  readonly historyCheck: HistoryCheck
  readonly logger: Logger
}
