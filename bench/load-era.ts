/**
 * Runs inside the kernel lab, started by era-load.ts: puts load on a device with fio, as it is and below an era target, in turn, and prints the
 * figures as JSON.
 *
 *   node bench/load-era.ts --fio FILE --libraries FOLDERS --rounds N --seconds S
 *
 * Every turn below the era target begins with a new era, in which no block is marked yet: marking is what costs, once for each block in each
 * era. So there are turns in which all blocks are marked before fio begins, and turns in which an era ends each second, as when a snapshot is
 * taken: suspended and resumed.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { createDevice, createLinear, removeDevice, run, sectorBytes, zeroStart } from '../test/kernel/dmsetup.ts'
import { loadArguments, type WriteFigures, writeAtRandom } from './fio-job.ts'

/** What fio writes to; without tracking first. */
const kinds = [
  'a linear device',
  'an era device, all blocks marked',
  'an era device, in a new era',
  'an era device, a new era each second'
] as const
export type Written = (typeof kinds)[number]

export interface EraLoadTurn extends WriteFigures {
  readonly to: Written
  /** Boundaries meanwhile, and what each took from before its suspension until after its resumption, in milliseconds. */
  readonly boundaries: number
  readonly boundaryMs: number
}

export interface EraLoadFigures {
  readonly sizeBytes: number
  readonly blockBytes: number
  readonly turns: EraLoadTurn[]
}

const mebibyte = 2 ** 20
const BOUNDARY_EVERY_MS = 1000
const SIZE_BYTES = 1024 * mebibyte
const BLOCK_BYTES = 65536
const METADATA_BYTES = 32 * mebibyte

const { fio, rounds, seconds } = loadArguments()
const metadata = createLinear('metadata', '/dev/ubda', 0, METADATA_BYTES)
const below = createLinear('below', '/dev/ubda', METADATA_BYTES, SIZE_BYTES)
zeroStart(metadata)

const turns: EraLoadTurn[] = []
for (let round = 0; round < rounds; round++) {
  for (let turn = 0; turn < kinds.length; turn++) turns.push(await load(kinds[(round + turn) % kinds.length]))
}
for (const device of [below, metadata]) removeDevice(device.slice('/dev/mapper/'.length))
const figures: EraLoadFigures = { sizeBytes: SIZE_BYTES, blockBytes: BLOCK_BYTES, turns }
console.log(JSON.stringify(figures))
process.exit(0)

async function load(to: Written): Promise<EraLoadTurn> {
  // Every turn finds the disk's file as the others do.
  if (to !== 'an era device, all blocks marked') overwrite(below)
  if (to === 'a linear device') {
    return { to, ...(await writeAtRandom(below, seconds, fio)), boundaries: 0, boundaryMs: 0 }
  }
  // An era ends when the device is removed, and another begins when it is back.
  const device = createDevice(
    'tracked',
    `0 ${SIZE_BYTES / sectorBytes} era ${metadata} ${below} ${BLOCK_BYTES / sectorBytes}`
  )
  if (to === 'an era device, all blocks marked') overwrite(device)
  const over = new AbortController()
  const ending = to === 'an era device, a new era each second' ? endEras(over.signal) : { boundaries: 0, boundaryMs: 0 }
  const written = await writeAtRandom(device, seconds, fio)
  over.abort()
  const boundaries = await ending
  removeDevice('tracked')
  return { to, ...written, ...boundaries }
}

function overwrite(device: string): void {
  run('dd', ['if=/dev/zero', `of=${device}`, 'bs=1M', `count=${SIZE_BYTES / mebibyte}`, 'oflag=direct'])
}

async function endEras(over: AbortSignal): Promise<Pick<EraLoadTurn, 'boundaries' | 'boundaryMs'>> {
  let [boundaries, spent] = [0, 0]
  for (;;) {
    await sleep(BOUNDARY_EVERY_MS, undefined, { signal: over }).catch(() => undefined)
    if (over.aborted) return { boundaries, boundaryMs: spent / Math.max(1, boundaries) }
    const begun = performance.now()
    run('dmsetup', ['suspend', 'tracked'])
    run('dmsetup', ['resume', 'tracked'])
    spent += performance.now() - begun
    boundaries++
  }
}
