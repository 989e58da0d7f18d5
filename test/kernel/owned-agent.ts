/**
 * An agent that has pools of its own, in the kernel lab: with a catalog that outlives it, blank disks to make pools of, and someone who
 * writes to a volume in an order that every snapshot of it has to keep.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, mkdtempSync, openSync, readSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { ExecutionContext } from 'ava'
import type { DeviceMapper } from '../../native/device-mapper.ts'
import { DeltamapperError } from '../../src/errors.ts'
import { type AdminClient, connectAdmin } from '../../src/grpc/admin-client.ts'
import { complaint, runCommand } from '../cli/run-command.ts'
import { collectExtents } from '../support/collect-extents.ts'
import type { Extent } from '../support/expected.ts'
import { createLinear, reloadDevice, zeroStart } from './dmsetup.ts'
import { LiveAgent } from './live-agent.ts'

export const mebibyte = 2 ** 20
export const blockBytes = 65536

let used = 0
let disks = 0

/** A blank part of the lab's disk that nothing else uses, as a block device of its own that can grow to `room`. */
export function blankDisk(name: string, mebibytes: number, room = mebibytes): string {
  const path = createLinear(`${name}-${disks++}`, '/dev/ubda', used * mebibyte, mebibytes * mebibyte)
  used += room
  zeroStart(path)
  return path
}

/** Two of them, for a pool. */
export function blankDisks(dataMebibytes: number, room = dataMebibytes): { data: string; metadata: string } {
  return { data: blankDisk('data', dataMebibytes, room), metadata: blankDisk('metadata', 4) }
}

/** Makes one of them larger, within its room. */
export async function growDisk(deviceMapper: DeviceMapper, path: string, mebibytes: number): Promise<void> {
  const [table] = await deviceMapper.table(nameOf(path))
  reloadDevice(nameOf(path), `0 ${(mebibytes * mebibyte) / 512} linear ${table?.params}`)
}

/** The device-mapper name of a disk. */
export function nameOf(path: string): string {
  return path.slice('/dev/mapper/'.length)
}

/** Names of all device-mapper devices but the disks. */
export async function devicesBesideDisks(deviceMapper: DeviceMapper): Promise<string[]> {
  const names = (await deviceMapper.list()).map(({ name }) => name)
  return names.filter((name) => !/^(data|metadata)-\d+$/.test(name)).sort()
}

export class OwnedAgent {
  live: LiveAgent
  client: AdminClient
  readonly #catalog: string

  private constructor(live: LiveAgent, catalog: string) {
    this.live = live
    this.client = connectAdmin(live.address)
    this.#catalog = catalog
  }

  /** Whoever starts it ends it. */
  static async start(): Promise<OwnedAgent> {
    const catalog = join(mkdtempSync(join(tmpdir(), 'owned-')), 'catalog.sqlite')
    return new OwnedAgent(await OwnedAgent.#launch(catalog), catalog)
  }

  static #launch(catalog: string): Promise<LiveAgent> {
    return LiveAgent.start({ config: { catalog, walkers: 1, drainSeconds: 1, lvmCommand: ['false'] } })
  }

  async kill(): Promise<void> {
    this.client.close()
    await this.live.kill()
  }

  /** After it was killed or stopped. */
  async startAgain(): Promise<void> {
    this.client.close()
    this.live = await OwnedAgent.#launch(this.#catalog)
    this.client = connectAdmin(this.live.address)
  }

  /** A command that is to succeed; its answer as JSON. */
  async command(...words: string[]): Promise<object> {
    const result = await runCommand([...words, '--endpoint', this.live.address, '-o', 'json'])
    if (result.status !== 0 || result.stderr !== '') throw new Error(`${words.join(' ')}: ${result.stderr}`)
    return JSON.parse(result.stdout) as object
  }

  /** A command that is to fail; what it complains of. */
  async complaint(...words: string[]): Promise<string> {
    const result = await runCommand([...words, '--endpoint', this.live.address])
    if (result.status !== 1 || result.stdout !== '')
      throw new Error(`${words.join(' ')} did not fail: ${result.stdout}`)
    return complaint(result)
  }

  async delta(base: string, target: string): Promise<Extent[]> {
    return collectExtents(await this.live.client().delta({ baseSnapshotId: base, targetSnapshotId: target }))
  }

  async allocated(handle: string): Promise<Extent[]> {
    return collectExtents(await this.live.client().allocated({ snapshotId: handle }))
  }
}

/** The blocks that extents cover. */
export function blocksOf(extents: readonly Extent[]): number[] {
  return extents.flatMap(([offset, size]) =>
    Array.from({ length: size / blockBytes }, (_, i) => offset / blockBytes + i)
  )
}

/** What a promise is rejected with. */
export async function failure(promise: Promise<unknown>): Promise<DeltamapperError> {
  const error: unknown = await promise.then(
    () => new Error('it succeeded'),
    (thrown: unknown) => thrown
  )
  if (error instanceof DeltamapperError) return error
  throw error
}

/** Looks until it is good. */
export async function until<T>(look: () => Promise<T>, good: (seen: T) => boolean): Promise<T> {
  for (const deadline = performance.now() + 300_000; ; await sleep(200)) {
    const seen = await look()
    if (good(seen)) return seen
    if (performance.now() > deadline) throw new Error('still not so after 300 s')
  }
}

/** Writes 1, 2, 3 … to the first of two places and then to the second: at any moment, the first has as much as the second, or one more. */
const writeInOrder = `
const { openSync, writeSync, constants } = require('node:fs')
const file = openSync(process.argv[1], constants.O_WRONLY | constants.O_DIRECT)
const buffer = Buffer.from(new WebAssembly.Memory({ initial: 1 }).buffer)
const pause = new Int32Array(new SharedArrayBuffer(4))
process.stdout.write('begun')
for (let i = 1; ; i++) {
  buffer.writeUInt32LE(i)
  for (const at of [0, Number(process.argv[2])]) {
    writeSync(file, buffer, 0, buffer.length, at)
    // The lab has one processor.
    Atomics.wait(pause, 0, 0, 2)
  }
}`

/** Starts a process that does so; the second place is at byte `secondAt`. Resolves once it writes. */
export async function startOrderedWriter(t: ExecutionContext, device: string, secondAt: number): Promise<ChildProcess> {
  const writer = spawn(process.execPath, ['-e', writeInOrder, device, String(secondAt)], {
    stdio: ['ignore', 'pipe', 'inherit']
  })
  t.teardown(() => writer.kill('SIGKILL'))
  await once(writer.stdout, 'data')
  return writer
}

/** What it has written to one of its places. */
export function readWritten(device: string, at: number): number {
  const file = openSync(device, 'r')
  try {
    const buffer = Buffer.alloc(4)
    readSync(file, buffer, 0, 4, at)
    return buffer.readUInt32LE()
  } finally {
    closeSync(file)
  }
}
