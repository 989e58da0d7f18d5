/**
 * An era device of the kernel's that is led through a life (test/simulation/kernel/era-target-life.ts), by calls rather than programs: many
 * of them. Below it is nothing (dm-zero): writes cost little.
 */
import { closeSync, constants, openSync, readFileSync, readSync, writeSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { DeviceMapperError } from '../../native/device-mapper-error.ts'
import { DeviceMapper, type TableRow } from '../../native/device-mapper.ts'
import { BLOCK_SECTORS, type EraStep, METADATA_BLOCKS, MOST_BLOCKS } from '../simulation/kernel/era-target-life.ts'
import { alignedBuffer, sectorBytes, zeroStart } from './dmsetup.ts'

const ERA = 'lived-era'
const METADATA_BLOCK_BYTES = 4096
/** On the disk, behind the metadata; bytes. */
const SPARE_AT = 16 * 2 ** 20
/** (On a machine with much else to do.) */
const DEADLINE_MS = 900_000
const BLOCK_BYTES = BLOCK_SECTORS * sectorBytes
/** How often in a row nothing else has to be running for the worker to be taken for idle, and how long to wait in between, in milliseconds. */
const QUIET_LOOKS = 3
const LOOK_MS = 2

const row = (lengthSectors: number, targetType: string, params: string): TableRow => ({
  ...{ startSector: 0, lengthSectors, targetType, params }
})

export class KernelEra {
  readonly metadata = `/dev/mapper/${ERA}-metadata`
  /** Of the same size, for metadata of another origin. */
  readonly spare = `/dev/mapper/${ERA}-spare`
  readonly #deviceMapper = new DeviceMapper({ deadlineMs: DEADLINE_MS })
  readonly #buffer = alignedBuffer(METADATA_BLOCK_BYTES)
  #file: number | undefined
  #blocks = 0
  #isMade = false

  /** A new device with blank metadata, in place of the one before. */
  async format(blocks: number): Promise<void> {
    if (this.#isMade) await this.deactivate()
    else await this.#makeParts()
    zeroStart(this.metadata)
    this.#blocks = blocks
    await this.#activate()
  }

  async #makeParts(): Promise<void> {
    for (const [part, at] of [
      ['metadata', 0],
      ['spare', SPARE_AT]
    ] as const) {
      const length = (METADATA_BLOCKS * METADATA_BLOCK_BYTES) / sectorBytes
      await this.#deviceMapper.create(`${ERA}-${part}`, {
        table: [row(length, 'linear', `/dev/ubda ${at / sectorBytes}`)]
      })
    }
    await this.#deviceMapper.create(`${ERA}-data`, { table: [row(MOST_BLOCKS * BLOCK_SECTORS, 'zero', '')] })
    this.#isMade = true
  }

  /** @returns what the kernel says: a status line, an errno, or nothing */
  async do(step: EraStep): Promise<string> {
    let said = ''
    switch (step.kind) {
      case 'write':
        for (const block of step.blocks) {
          writeSync(this.#open(), this.#buffer, 0, BLOCK_BYTES, block * BLOCK_BYTES)
          await idle()
        }
        break
      case 'status':
        said = await this.#status()
        break
      case 'suspend':
        await this.#suspend()
        await this.#deviceMapper.resume(ERA)
        break
      case 'reactivate':
        await this.deactivate()
        await this.#activate()
        break
      case 'resize':
        this.#close()
        await this.#suspend()
        this.#blocks = step.blocks
        await this.#deviceMapper.reload(ERA, [this.#row])
        await this.#deviceMapper.resume(ERA)
        break
      case 'checkpoint':
      case 'take_metadata_snap':
      case 'drop_metadata_snap':
        try {
          await this.#deviceMapper.message(ERA, step.kind)
        } catch (error) {
          if (!(error instanceof DeviceMapperError)) throw error
          said = error.errno ?? error.message
        }
    }
    await idle()
    return said
  }

  /** The superblock on disk. */
  superblock(): Buffer {
    const file = openSync(this.metadata, constants.O_RDONLY | constants.O_DIRECT)
    try {
      readSync(file, this.#buffer, 0, METADATA_BLOCK_BYTES, 0)
      return Buffer.from(this.#buffer.subarray(0, METADATA_BLOCK_BYTES))
    } finally {
      closeSync(file)
    }
  }

  /** As it goes when a machine is shut down; what is archived is digested before. */
  async deactivate(): Promise<void> {
    if ((await this.#deviceMapper.info(ERA)) === undefined) return
    this.#close()
    await this.#status()
    await idle()
    await this.#deviceMapper.remove(ERA, { retry: true })
  }

  async close(): Promise<void> {
    if (this.#isMade) {
      await this.deactivate()
      for (const each of ['data', 'spare', 'metadata'])
        await this.#deviceMapper.remove(`${ERA}-${each}`, { retry: true })
    }
    await this.#deviceMapper.close()
  }

  get #row(): TableRow {
    const params = `${this.metadata} /dev/mapper/${ERA}-data ${BLOCK_SECTORS}`
    return row(this.#blocks * BLOCK_SECTORS, 'era', params)
  }

  async #activate(): Promise<void> {
    await this.#deviceMapper.create(ERA, { table: [this.#row] })
    await idle()
  }

  async #status(): Promise<string> {
    const [status] = await this.#deviceMapper.status(ERA)
    return status?.params.trim() ?? ''
  }

  /** What is archived is digested first: otherwise it is a matter of chance how far that has come when the worker is stopped. */
  async #suspend(): Promise<void> {
    await this.#status()
    await idle()
    await this.#deviceMapper.suspend(ERA)
  }

  #open(): number {
    return (this.#file ??= openSync(`/dev/mapper/${ERA}`, constants.O_RDWR | constants.O_DIRECT))
  }

  #close(): void {
    if (this.#file !== undefined) closeSync(this.#file)
    this.#file = undefined
  }
}

/** Nobody else has anything to do: so the target's worker, which asks for no disk while it digests, has come to its end. */
async function idle(): Promise<void> {
  for (let quiet = 0; quiet < QUIET_LOOKS;) {
    const [, , , running = ''] = readFileSync('/proc/loadavg', 'utf8').split(' ')
    quiet = running.startsWith('1/') ? quiet + 1 : 0
    await sleep(LOOK_MS)
  }
}
