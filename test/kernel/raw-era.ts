/**
 * An era device that is run with dmsetup, and what is known of it from outside: which block was written to in which era. So what an answer
 * has to be follows from what was done to the device, and not from its metadata.
 *
 * Below it is nothing (dm-zero): writes cost little, and a device may be as large as it likes.
 */
import { closeSync, constants, openSync, writeSync } from 'node:fs'
import { extentsOfBlocks } from '../support/era-model.ts'
import type { Extent } from '../support/expected.ts'
import {
  alignedBuffer,
  createDevice,
  createLinear,
  reloadDevice,
  removeDevice,
  run,
  sectorBytes,
  sendMessage,
  zeroStart
} from './dmsetup.ts'

export interface RawEraOptions {
  /** Name of the era device; those of its parts begin with it. */
  readonly name: string
  /** Where on the disk its metadata lies, in bytes. */
  readonly offsetBytes: number
  readonly metadataBytes: number
  readonly blockBytes: number
  readonly sizeBytes: number
  /** What it may grow to. */
  readonly mostBytes?: number
}

export class RawEra {
  readonly name: string
  /** Path of its metadata device. */
  readonly metadata: string
  readonly blockBytes: number
  sizeBytes: number
  /** The current era, by our own count. */
  era = 1
  /** Writes that the metadata snapshot knows, and the era that began when it was taken. */
  #held: { readonly writes: number; readonly era: number; readonly sizeBytes: number } | undefined
  readonly #writes: { readonly block: number; readonly era: number }[] = []
  readonly #buffer: Uint8Array
  #file: number | undefined

  constructor({ name, offsetBytes, metadataBytes, blockBytes, sizeBytes, mostBytes = sizeBytes }: RawEraOptions) {
    this.name = name
    this.blockBytes = blockBytes
    this.sizeBytes = sizeBytes
    this.#buffer = alignedBuffer(4 * 2 ** 20)
    this.metadata = createLinear(`${name}-metadata`, '/dev/ubda', offsetBytes, metadataBytes)
    createDevice(`${name}-data`, `0 ${mostBytes / sectorBytes} zero`)
    zeroStart(this.metadata)
    createDevice(name, this.#table())
    this.#open()
  }

  get hasSnapshot(): boolean {
    return this.#held !== undefined
  }

  /** Writes bytes `[offset, offset + length)`: multiples of 512, as large as the buffer at most. */
  write(offset: number, length: number): void {
    if (this.#file === undefined) throw new Error(`${this.name} is not active`)
    const written = writeSync(this.#file, this.#buffer, 0, length, offset)
    if (written !== length) throw new Error(`${written} of ${length} bytes were written`)
    this.#mark(offset, length)
  }

  writeZeroes(offset: number, length: number): void {
    run('blkdiscard', ['--zeroout', '--offset', `${offset}`, '--length', `${length}`, `/dev/mapper/${this.name}`])
    this.#mark(offset, length)
  }

  checkpoint(): void {
    sendMessage(this.name, 'checkpoint')
    this.era++
  }

  takeSnapshot(): void {
    sendMessage(this.name, 'take_metadata_snap')
    this.era++
    this.#held = { writes: this.#writes.length, era: this.era, sizeBytes: this.sizeBytes }
  }

  dropSnapshot(): void {
    sendMessage(this.name, 'drop_metadata_snap')
    this.#held = undefined
  }

  /** @param meanwhile what is done while the era is over, and the next has not begun */
  async suspended(meanwhile: () => Promise<void>): Promise<void> {
    run('dmsetup', ['suspend', this.name])
    try {
      await meanwhile()
    } finally {
      run('dmsetup', ['resume', this.name])
      this.era++
    }
  }

  grow(bytes: number): void {
    this.sizeBytes += bytes
    reloadDevice(this.name, this.#table())
    this.era++
  }

  /** @param meanwhile what is done while nobody has the metadata device open */
  async deactivated(meanwhile: () => Promise<void>): Promise<void> {
    this.#close()
    removeDevice(this.name)
    await meanwhile()
    createDevice(this.name, this.#table())
    this.era++
    this.#open()
  }

  /** Era and metadata snapshot's block, as the kernel has them; the device must not be suspended. */
  status(): { era: number; snapshot: number } {
    const [, era = '', snapshot = ''] = /\d+\/\d+ (\d+) (\d+|-)\s*$/.exec(run('dmsetup', ['status', this.name])) ?? []
    return { era: Number(era), snapshot: snapshot === '-' ? 0 : Number(snapshot) }
  }

  /** The last era that a view knows. */
  lastEra(view: 'live' | 'metadata-snapshot'): number {
    return view === 'live' ? this.era : this.#heldState().era - 1
  }

  /** What was really written to in an era or later, of the whole device as the view has it. */
  expected(sinceEra: number, view: 'live' | 'metadata-snapshot'): Extent[] {
    const { writes, sizeBytes } =
      view === 'live' ? { writes: this.#writes.length, sizeBytes: this.sizeBytes } : this.#heldState()
    const blocks = this.#writes.slice(0, writes).filter(({ era }) => era >= sinceEra)
    return extentsOfBlocks(
      blocks.map(({ block }) => block),
      { blockBytes: this.blockBytes, sizeBytes: Math.ceil(sizeBytes / this.blockBytes) * this.blockBytes }
    )
  }

  close(): void {
    this.#close()
    for (const each of [this.name, `${this.name}-data`, `${this.name}-metadata`]) removeDevice(each)
  }

  #heldState() {
    if (this.#held === undefined) throw new Error('there is no metadata snapshot')
    return this.#held
  }

  #mark(offset: number, length: number): void {
    const end = Math.ceil((offset + length) / this.blockBytes)
    for (let block = Math.floor(offset / this.blockBytes); block < end; block++) {
      this.#writes.push({ block, era: this.era })
    }
  }

  #table(): string {
    return `0 ${this.sizeBytes / sectorBytes} era ${this.metadata} /dev/mapper/${this.name}-data ${this.blockBytes / sectorBytes}`
  }

  #open(): void {
    this.#file = openSync(`/dev/mapper/${this.name}`, constants.O_WRONLY | constants.O_DIRECT)
  }

  #close(): void {
    if (this.#file !== undefined) closeSync(this.#file)
    this.#file = undefined
  }
}
