/**
 * A volume group on the lab's disk, an agent, and what scenes of classic snapshots (classic-snapshots.test.ts,
 * classic-below.ts) do with both.
 */
import { closeSync, constants, openSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import test, { type ExecutionContext } from 'ava'
import type { Extent } from '../support/expected.ts'
import { answerTo, failure } from './ask.ts'
import { serve as serveClassic } from './classic-agent.ts'
import { MEBIBYTE } from './cow-life.ts'
import { alignedBuffer, run } from './dmsetup.ts'
import { LiveAgent } from './live-agent.ts'
import { createGroup, lvm, prepareLvm } from './lvm-setup.ts'
import type { InStep } from './rounds.ts'

/** Each on a volume of its own, by what happens in it. */
export type Scenes = Readonly<Record<string, (t: ExecutionContext, inStep: InStep) => Promise<void>>>

prepareLvm()
export const group = 'classic'
createGroup(group, '/dev/ubda')
export const monitoring = '127.0.0.1:8083'
// (One walker: its start is dear in the lab.)
export const agent = await LiveAgent.start({
  config: { logLevel: 'info', walkers: 1, monitoring: `tcp://${monitoring}`, examinationDeadlineSeconds: 60 }
})
export const client = agent.client()
test.after.always(async () => agent.stop())

export const handle = (name: string) => `${group}/${name}`

export const serve = (name: string) => serveClassic(client, group, name)
export const delta = (base: string, target: string) => answerTo(client, { base: handle(base), target: handle(target) })
export const refusal = async (base: string, target: string) => (await failure(delta(base, target))).code
export const refusalOf = async (target: string) => (await failure(answerTo(client, { target: handle(target) }))).code

const buffer = alignedBuffer(MEBIBYTE)
let filler = 1
/** A byte that was nowhere before. */
export const fresh = () => filler++ % 251

/** @returns the chunks of 4 KiB */
export function write(device: string, chunk: number, chunks = 1, fill = fresh()): Extent {
  writeEach(device, [chunk], chunks, fill)
  return [chunk * 4096, chunks * 4096]
}

export function writeEach(device: string, places: readonly number[], chunks = 1, fill = fresh()): void {
  buffer.fill(fill)
  const file = openSync(device, constants.O_WRONLY | constants.O_DIRECT)
  for (const chunk of places) writeSync(file, buffer, 0, chunks * 4096, chunk * 4096)
  closeSync(file)
}

/** A loop device on a new file of so many bytes with a unit, as truncate has it. */
export function loopDevice(number: number, size: string): string {
  const [file, device] = [`${tmpdir()}/disk-${number}`, `/dev/loop${number}`]
  run('truncate', ['--size', size, file])
  run('losetup', [device, file])
  return device
}

/** A device's table as it is. */
export const tableOf = (name: string) => run('dmsetup', ['table', name]).trim()

/** So many chunks that do not touch: each is an extent of its own. */
export const everyOther = (chunks: number) => Array.from({ length: chunks }, (_, i) => 2 * i)

export function volume(name: string, size = '4m'): string {
  lvm('lvcreate', '--size', size, '--wipesignatures', 'n', '--name', name, group)
  return `/dev/${group}/${name}`
}

export function snapshot(origin: string, name: string, { size = '5m', permission = 'r' } = {}): void {
  const options = ['--size', size, '--chunksize', '4k', '--permission', permission]
  lvm('lvcreate', '--snapshot', ...options, '--name', name, handle(origin))
}

export const activate = (name: string, yes: 'y' | 'n') => lvm('lvchange', '--activate', yes, handle(name))
