/**
 * Lives of an era device in which nothing goes wrong, told as what is done to it: the simulated device and the kernel's go through the same
 * ones (test/kernel/simulated-era.test.ts), and have to end up alike.
 */
import { Random } from '../../support/random.ts'
import type { MetadataDisk } from '../metadata/disk.ts'
import { EraTarget } from './era-target.ts'
import { Refused } from './refused.ts'

export const METADATA_BLOCKS = 900
export const BLOCK_SECTORS = 8
/** More than one block of bits has room for. */
export const MOST_BLOCKS = 40_000
const WORD = 64

export type EraStep =
  | { readonly kind: 'write'; readonly blocks: readonly number[] }
  | { readonly kind: 'checkpoint' | 'take_metadata_snap' | 'drop_metadata_snap' }
  | { readonly kind: 'status' | 'suspend' | 'reactivate' }
  /** As tools should: it is suspended, gets another table, and is resumed. */
  | { readonly kind: 'resize'; readonly blocks: number }

export interface EraLife {
  /** Of the device when it is made. */
  readonly blocks: number
  readonly steps: readonly EraStep[]
}

/** What is done in the life of a seed. */
export function eraLifeOf(seed: number): EraLife {
  const random = new Random(seed)
  const size = () =>
    random.chance(0.1) ? random.integer(33_000, MOST_BLOCKS) : random.pick([1, 63, 64, 700, 1018, 1019, 2500, 4072])
  const first = size()
  let blocks = first
  const steps: EraStep[] = []
  for (let length = random.integer(8, 40); steps.length < length;) {
    const kind = random.pick([
      ...(['write', 'write', 'write', 'write', 'write', 'checkpoint', 'checkpoint', 'status', 'status'] as const),
      ...(['take_metadata_snap', 'drop_metadata_snap', 'suspend', 'reactivate', 'resize'] as const)
    ])
    switch (kind) {
      case 'write':
        steps.push({ kind, blocks: blocksOf(random, blocks) })
        break
      case 'resize':
        blocks = size()
        steps.push({ kind, blocks })
        break
      case 'checkpoint':
      case 'take_metadata_snap':
      case 'drop_metadata_snap':
      case 'status':
      case 'suspend':
      case 'reactivate':
        steps.push({ kind })
    }
  }
  return { blocks: first, steps: [...steps, { kind: 'status' }] }
}

function blocksOf(random: Random, blocks: number): number[] {
  const first = random.integer(0, blocks - 1)
  const [length, stride] = [random.pick([1, 1, 3, 20]), random.pick([1, 7, WORD, 1018])]
  return Array.from({ length }, (_, i) => (first + i * stride) % blocks)
}

/** A device, and its metadata, from its making on. */
export class LivedEra {
  readonly disk: MetadataDisk
  #target: EraTarget

  constructor(disk: MetadataDisk, blocks: number) {
    this.disk = disk
    this.#target = EraTarget.load(disk, { blockSectors: BLOCK_SECTORS, blocks })
    this.#target.resume()
    this.#target.runWorker()
  }

  get target(): EraTarget {
    return this.#target
  }

  /** Does a step, and lets the worker come to its end. @returns what the kernel says: a status line, an errno, or nothing */
  do(step: EraStep): string {
    const target = this.#target
    let said = ''
    switch (step.kind) {
      case 'write':
        // One after the other: each waits for its mark.
        for (const block of step.blocks) {
          target.write(block, () => undefined)
          target.runWorker()
        }
        break
      case 'status':
        target.status((line) => {
          said = line
        })
        break
      case 'suspend':
        this.suspend()
        target.resume()
        break
      case 'reactivate':
        this.#reload(target.blocks)
        break
      case 'resize':
        this.#reload(step.blocks)
        break
      case 'checkpoint':
      case 'take_metadata_snap':
      case 'drop_metadata_snap':
        target.message(step.kind, (error?: Refused) => {
          said = error?.errno ?? ''
        })
    }
    this.#target.runWorker()
    return said
  }

  /** What has been archived is digested first, so that nothing races with the end of the worker. */
  suspend(): void {
    this.#target.status(() => undefined)
    this.#target.runWorker()
    this.#target.suspend()
  }

  #reload(blocks: number): void {
    this.suspend()
    this.#target = EraTarget.load(this.disk, { blockSectors: BLOCK_SECTORS, blocks })
    this.#target.resume()
  }
}
