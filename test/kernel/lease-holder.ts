/**
 * Takes leases of a pool's metadata snapshot and gives them back, over and over, until it is killed. Started by lease.test.ts:
 *
 *   node lease-holder.ts CATALOG POOL MOST-MS-HELD SEED
 *
 * Says `held` and `free` on stdout. On SIGTERM it does what the agent does, and ends with status 0.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { pino } from 'pino'
import { DeviceMapper } from '../../native/device-mapper.ts'
import { openCatalog } from '../../src/agent/catalog/catalog.ts'
import { MetadataSnapshotLeases } from '../../src/agent/leases/metadata-snapshot-lease.ts'
import { Random } from '../support/random.ts'

const [catalogPath = '', pool = '', mostHeld = '', seed = ''] = process.argv.slice(2)
const random = new Random(Number(seed))
const catalog = await openCatalog(catalogPath)
const deviceMapper = new DeviceMapper()
const leases = new MetadataSnapshotLeases(
  catalog,
  deviceMapper,
  // On a busy machine, the keeper of the last lease may still be about to end.
  { headroom: { percent: 25, blocks: 100 }, holdMs: 60_000, waitMs: 300_000, watchMs: 20 },
  pino({ level: 'info' }, pino.destination(2))
)
let stopping = false

process.on('SIGTERM', () => {
  stopping = true
  void (async () => {
    await leases.close()
    await deviceMapper.close()
    await catalog.close()
    process.stdout.write('stopped\n')
  })()
})

async function use(purpose: string): Promise<void> {
  await using lease = await leases.acquire(pool, { purpose })
  process.stdout.write('held\n')
  await sleep(random.integer(0, Number(mostHeld)), undefined, { signal: lease.signal }).catch(() => undefined)
}

while (!stopping) {
  // One alone, or two that share it and end at different times.
  const users = Array.from({ length: random.integer(1, 2) }, (_, index) => use(`user ${index}`))
  for (const each of await Promise.allSettled(users)) {
    if (each.status === 'rejected' && !stopping) throw each.reason
  }
  process.stdout.write('free\n')
}
