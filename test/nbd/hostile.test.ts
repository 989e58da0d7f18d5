/**
 * Clients that say anything: sessions that are right but for what a seeded random changes in them. The server answers or ends the connection,
 * and never fails; and whoever comes next is served as ever. A slice here, millions in `npm run soak`.
 */
import test from 'ava'
import { readPoolDescription, unpackRecordedPool } from '../fixtures/recorded-pool.ts'
import { serveNbd } from '../support/nbd-clients.ts'
import { attackNbd } from './attack.ts'

test('malformed handshakes and requests', async (t) => {
  t.timeout(4 * 3_600_000)
  const recorded = await unpackRecordedPool()
  const { size_bytes } = (await readPoolDescription(recorded)).snapshots.find(({ name }) => name === 'tides-grown')!
  const server = await serveNbd('x/tides-grown', { base: ['x/tides-shrunk'], recorded: { x: recorded } })
  t.teardown(() => server.close())
  const { NBD_SEED = '1', NBD_MESSAGES = '8000' } = process.env
  const report = await attackNbd(server.path, size_bytes, { seed: Number(NBD_SEED), messages: Number(NBD_MESSAGES) })
  t.log(JSON.stringify(report))
  t.true(report.messages >= Number(NBD_MESSAGES))
  t.true(report.refused > 0 && report.answered > 0 && report.ended > 0)
  // (After 250,000 messages the heap holds 18 MiB, as after 50,000; the rest is read buffers and what V8 and malloc keep.)
  t.true(report.grownMiB < 350)
  t.deepEqual(server.failures, [])
})
