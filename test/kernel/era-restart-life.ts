/**
 * One boot of a machine that tracks a volume: it is shut down in order, deactivated by hand, or crashes; a rescue system may be booted next, which
 * writes to what is below; then the agent is back. Runs inside the kernel lab, started by test/lab/era-restarts.ts:
 *
 *   node test/kernel/era-restart-life.ts --boot first|rescue|last --ends shutdown|deactivated|crash --journal FILE --seed S
 *
 * On the lab's disk are an ext4 with the agent's catalog, the metadata device, and the data device. The first boot says `done` when it is at its
 * end, and waits there; the last one says what has become of the history.
 */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import { DeviceMapper } from '../../native/device-mapper.ts'
import { openCatalog } from '../../src/agent/catalog/catalog.ts'
import { DeltamapperError } from '../../src/errors.ts'
import { Random } from '../support/random.ts'
import { blockFingerprints } from './block-fingerprints.ts'
import { createDevice, run } from './dmsetup.ts'
import { EraAnswers, recorderOf } from './era-answers.ts'
import { blockBytes, mebibyte, startDriver } from './era-lab.ts'

const CATALOG_BYTES = 64 * mebibyte
const METADATA_BYTES = 4 * mebibyte
const DATA_BYTES = 32 * mebibyte
const folder = '/run/mnt/agent'
const volume = 'restarted'

const text = { type: 'string', default: '' } as const
const { values } = parseArgs({ options: { boot: text, ends: text, journal: text, seed: text } })
const random = new Random(Number(values.seed) + ['first', 'rescue', 'last'].indexOf(values.boot))

run('/run/modprobe', ['dm-era'])
const part = (name: string, offsetBytes: number, sizeBytes: number) =>
  createDevice(name, `0 ${sizeBytes / 512} linear /dev/ubda ${offsetBytes / 512}`, '--uuid', `TEST-${name}`)
const disk = part('catalog', 0, CATALOG_BYTES)
const metadata = part('metadata', CATALOG_BYTES, METADATA_BYTES)
const lower = part('data', CATALOG_BYTES + METADATA_BYTES, DATA_BYTES)

/** Beyond the first MiB, so that no look at the beginning shows it. */
function write(device: string): void {
  const block = random.integer(16, DATA_BYTES / blockBytes - 1)
  const words = ['if=/dev/urandom', `of=${device}`, 'bs=4k', 'count=1', `seek=${block * 16}`]
  run('dd', [...words, 'oflag=direct', 'conv=fsync', 'status=none'])
}

async function startAgent() {
  mkdirSync(folder, { recursive: true })
  if (values.boot === 'first') run('mkfs.ext4', ['-q', disk])
  run('mount', ['-t', 'ext4', disk, folder])
  const catalog = await openCatalog(`${folder}/catalog.sqlite`)
  const deviceMapper = new DeviceMapper()
  const commands = { [volume]: { take: ['true'], remove: ['true'] } }
  const recorder = recorderOf(catalog, deviceMapper)
  const { volumes } = await startDriver(catalog, deviceMapper, { recorder, commands })
  return { catalog, deviceMapper, volumes }
}

async function first(): Promise<void> {
  const { volumes } = await startAgent()
  await volumes.attachEra({
    ...{ name: volume, dataDevice: lower, metadataDevice: metadata, blockBytes },
    ...{ snapshotSize: '', allowLossyKernel: false }
  })
  await volumes.createEraSnapshot({ volume, name: 'base', deadlineMs: 0 })
  writeFileSync(values.journal, JSON.stringify(blockFingerprints(lower, blockBytes)))
  write(`/dev/mapper/${volume}`)
  if (values.ends !== 'crash') await volumes.deactivateEra({ volume, atShutdown: values.ends === 'shutdown' })
  console.log('done')
  await sleep(600_000)
}

async function last(): Promise<void> {
  const { catalog, deviceMapper, volumes } = await startAgent()
  const { lineBecause } = await volumes.activateEra({ volume, startOver: false })
  write(`/dev/mapper/${volume}`)
  await volumes.createEraSnapshot({ volume, name: 'target', deadlineMs: 0 })
  const base = JSON.parse(readFileSync(values.journal, 'utf8')) as string[]
  const differ = blockFingerprints(lower, blockBytes).flatMap((is, block) => (is === base[block] ? [] : [block]))
  const answers = new EraAnswers(deviceMapper)
  const asked = answers.delta(catalog, `${volume}/base`, `${volume}/target`)
  const answer = await asked.catch((error: unknown) => {
    if (error instanceof DeltamapperError) return error.code
    throw error
  })
  const missed =
    typeof answer === 'string'
      ? []
      : differ.filter(
          (block) => !answer.some(([at, size]) => at <= block * blockBytes && at + size > block * blockBytes)
        )
  const outcome = typeof answer === 'string' ? answer : 'answered'
  writeFileSync(values.journal, JSON.stringify({ outcome, lineBecause, differ: differ.length, missed: missed.length }))
  process.exit(0)
}

if (values.boot === 'first') await first()
else if (values.boot === 'last') await last()
else write(lower)
