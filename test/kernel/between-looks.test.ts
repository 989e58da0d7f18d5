/**
 * What an answer is about is looked at several times before the first message: by name, in the catalog, in the metadata. Whatever
 * becomes of a snapshot in between, the answer is about the one that was looked at first, or there is none. Runs inside the kernel lab:
 * node test/lab/run.ts test/kernel/between-looks.test.ts
 */
import { closeSync, constants, fsyncSync, openSync, writeSync } from 'node:fs'
import test from 'ava'
import { DeviceMapper } from '../../native/device-mapper.ts'
import { snapshotMetadataBackend } from '../../src/agent/answers/backend.ts'
import { deviceMapperSource } from '../../src/agent/answers/plain-pool.ts'
import type { DeviceMapperPort } from '../../src/agent/node/pool-device.ts'
import type { Snapshot } from '../../src/agent/walks/snapshot.ts'
import { Sources } from '../../src/agent/answers/sources.ts'
import { answersWith } from '../../src/agent/targets.ts'
import { walkMessages } from '../../src/agent/walks/thin-walk.ts'
import { Walkers } from '../../src/agent/walks/walkers.ts'
import { LvmReporter } from '../../src/agent/lvm/report.ts'
import { DeltamapperError } from '../../src/errors.ts'
import { discard } from './discard.ts'
import {
  alignedBuffer,
  createDevice,
  createLinear,
  removeDevice,
  sendMessage,
  thinPoolTable,
  thinTable,
  zeroStart
} from './dmsetup.ts'

const mebibyte = 2 ** 20
const blockBytes = 65536
const sizeBytes = 4 * mebibyte
const pool = 'looks-pool'

const deviceMapper = new DeviceMapper()
const walkers = new Walkers(1)
// Neither walkers nor device-mapper's helper keep a process alive on their own.
const alive = setInterval(() => undefined, 1000)
test.after.always(async () => {
  clearInterval(alive)
  await walkers.close()
  await deviceMapper.close()
})

test.before(() => {
  const metadataDevice = createLinear('looks-metadata', '/dev/ubda', 0, 4 * mebibyte)
  const dataDevice = createLinear('looks-data', '/dev/ubda', 4 * mebibyte, 32 * mebibyte)
  zeroStart(metadataDevice)
  createDevice(pool, thinPoolTable({ metadataDevice, dataDevice, dataBytes: 32 * mebibyte, blockBytes }))
  sendMessage(pool, 'create_thin 0')
  createDevice('looks-volume', thinTable(pool, 0, sizeBytes))
  write('looks-volume', 0, 10)
  take(1, 0, 'base')
  // Nothing is left of it: only the base has those blocks.
  discardBlocks('looks-volume', 0, 10)
  // It maps nothing, so nothing but that it is read-only tells it from a volume in use.
  take(2, 0, 'target', '--readonly')
})

function write(device: string, firstBlock: number, count: number): void {
  withDevice(device, (file) =>
    writeSync(file, alignedBuffer(count * blockBytes), 0, count * blockBytes, firstBlock * blockBytes)
  )
}

function discardBlocks(device: string, firstBlock: number, count: number): void {
  withDevice(device, (file) => discard(file, firstBlock * blockBytes, count * blockBytes))
}

function withDevice(device: string, use: (file: number) => void): void {
  const file = openSync(`/dev/mapper/${device}`, constants.O_RDWR | constants.O_DIRECT)
  try {
    use(file)
    fsyncSync(file)
  } finally {
    closeSync(file)
  }
}

function take(id: number, origin: number, name: string, ...options: string[]): void {
  sendMessage(pool, `create_snap ${id} ${origin}`)
  createDevice(name, thinTable(pool, id, sizeBytes), ...options)
}

async function find(name: string): Promise<Snapshot> {
  const snapshot = await deviceMapperSource(pool, deviceMapper).snapshot(name)
  if (!snapshot) throw new Error(`there is no ${name}`)
  return snapshot
}

async function failure(promise: Promise<unknown>): Promise<DeltamapperError> {
  const error: unknown = await promise.then(
    (result) => new Error(`it succeeded: ${JSON.stringify(result)}`),
    (thrown: unknown) => thrown
  )
  if (error instanceof DeltamapperError) return error
  throw error
}

/** A whole walk, with something done to the pool once the catalog is asked about what was seen. */
async function walkWith(meanwhile: () => void, base: Snapshot | undefined, target: Snapshot) {
  const statistics = { nodesRead: 0, bytesRead: 0, readCalls: 0, extents: 0, extentBytes: 0, volumeBytes: 0 }
  const request = { base, target, startingOffset: 0, maxResults: 0, direct: false }
  const onSeen = async () => {
    meanwhile()
    return undefined
  }
  return Array.fromAsync(walkMessages(request, statistics, new AbortController().signal, { onSeen }))
}

test.serial('a base that is trimmed while the catalog is asked about it', async (t) => {
  for (const block of [0, 1]) {
    const [base, target] = [await find('base'), await find('target')]
    // In the target it is not mapped either: without the base's mapping there is no difference to be seen.
    const error = await failure(walkWith(() => discardBlocks('base', block, 1), base, target))
    t.is(error.code, 'DM_SNAPSHOT_CHANGED')
  }
})

test.serial('a target that is trimmed while the catalog is asked about it', async (t) => {
  write('looks-volume', 20, 2)
  take(3, 0, 'trimmed')
  const trimmed = await find('trimmed')
  t.is((await failure(walkWith(() => discardBlocks('trimmed', 20, 1), undefined, trimmed))).code, 'DM_SNAPSHOT_CHANGED')
})

test.serial('a snapshot that is replaced under its thin id once its table was read', async (t) => {
  take(4, 0, 'first')
  const replacing = (name: string, replace: () => void): DeviceMapperPort => {
    let due = true
    return {
      info: (...args) => deviceMapper.info(...args),
      table: async (reference, options) => {
        const rows = await deviceMapper.table(reference, options)
        if (due && rows[0]?.targetType === 'thin' && (await deviceMapper.info(reference))?.name === name) {
          due = false
          replace()
        }
        return rows
      }
    }
  }
  const port = replacing('first', () => {
    removeDevice('first')
    sendMessage(pool, 'delete 4')
    take(4, 0, 'second')
  })
  const node = { deviceMapper: port as DeviceMapper, lvm: new LvmReporter() }
  const knowledge = { check: async () => undefined }
  const backend = snapshotMetadataBackend(new Sources(new Map(), node), walkers, answersWith({ knowledge }))
  const ask = async () => {
    const request = { snapshotId: `${pool}/first`, startingOffset: 0n, maxResults: 0 }
    const stream = await backend.allocated(request, new AbortController().signal)
    return Array.fromAsync(stream.messages)
  }
  t.is((await failure(ask())).code, 'DM_SNAPSHOT_NOT_FOUND')
})
