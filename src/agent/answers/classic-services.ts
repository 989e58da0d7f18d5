/** What the agent lends to the answers about classic snapshots. */
import type { Logger } from 'pino'
import type { DeviceMapper } from '../../../native/device-mapper.ts'
import type { Catalog } from '../catalog/catalog.ts'
import type { WalkMemory } from '../walks/walk-memory.ts'

export interface ClassicServices {
  readonly catalog: Pick<Catalog, 'classicSnapshots'>
  readonly deviceMapper: Pick<DeviceMapper, 'info' | 'table' | 'status'>
  readonly logger: Logger
  readonly strictBases: boolean
  readonly compare: 'auto' | 'never' | 'always'
  /** The most that is read to compare old contents with `auto`, and how fast in any case: bytes, and bytes a second. */
  readonly compareBytes: number
  readonly compareBytesPerSecond: number
  /** For the walks of all answers. */
  readonly memory: Pick<WalkMemory, 'take'>
  /** Told how many bytes were reported because nothing told them apart. */
  readonly onDoubtful?: (bytes: number) => void
}
