/**
 * A thread that writes to every block of 4 KiB of a device once, in random order, and marks each when the write has come back.
 */
import { closeSync, constants, openSync, writeSync } from 'node:fs'
import { parentPort, workerData } from 'node:worker_threads'
import { Random } from '../support/random.ts'
import { alignedBuffer } from './dmsetup.ts'

const { device, written, seed } = workerData as { device: string; written: Uint8Array; seed: number }
const BLOCK = 4096
const buffer = alignedBuffer(BLOCK).fill(7)
const blocks = written.length - 1
const file = openSync(device, constants.O_WRONLY | constants.O_DIRECT)
parentPort?.postMessage('at work')
for (const block of new Random(seed).shuffle(Array.from({ length: blocks }, (_, i) => i))) {
  writeSync(file, buffer, 0, BLOCK, block * BLOCK)
  Atomics.store(written, block, 1)
}
closeSync(file)
