/**
 * Somebody else who uses the pool: a thread that writes to devices, flushes, and has snapshots made and removed, until it is told to
 * stop. Every flush and every snapshot makes the pool commit.
 */
import { once } from 'node:events'
import { closeSync, constants, fsyncSync, openSync, writeSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads'
import { Random } from '../support/random.ts'
import { alignedBuffer, run, sectorBytes } from './dmsetup.ts'

/** A device and how much of it is written to, in bytes. */
export interface WrittenDevice {
  readonly path: string
  readonly sizeBytes: number
}

interface WriterOptions {
  readonly seed: number
  /** Always written to. */
  readonly own: WrittenDevice
  /** Commands that are run in turns, forever; what the first of them does, the last has undone. */
  readonly commands: readonly (readonly string[])[]
  /** Milliseconds between two of them. */
  readonly commandsApart: number
}

/** Devices to write to beside its own; an answer comes once no others are open any more. */
type Order = readonly WrittenDevice[]

export interface WriterCounts {
  writes: number
  flushes: number
  commands: number
}

type Answer = { kind: 'obeyed'; counts: WriterCounts } | { kind: 'failed'; why: string }

const MOST_BYTES = 131072

export class BackgroundWriter {
  readonly #worker: Worker
  readonly #gone: Promise<unknown>
  #failure: string | undefined
  #wake: () => void = () => undefined
  #obeyed = 0
  counts: WriterCounts = { writes: 0, flushes: 0, commands: 0 }

  constructor(options: WriterOptions) {
    this.#worker = new Worker(new URL(import.meta.url), { workerData: options })
    this.#worker.unref()
    this.#worker.on('message', (answer: Answer) => {
      if (answer.kind === 'failed') this.#failure = answer.why
      else {
        this.counts = answer.counts
        this.#obeyed++
      }
      this.#wake()
    })
    this.#worker.on('error', (error) => {
      this.#failure = String(error)
      this.#wake()
    })
    this.#gone = once(this.#worker, 'exit')
  }

  /** Writes to these devices as well from now on, and to no others but its own. */
  async writeTo(devices: Order): Promise<void> {
    const obeyed = this.#obeyed
    this.#worker.postMessage(devices)
    while (this.#obeyed === obeyed && this.#failure === undefined) {
      await new Promise<void>((resolve) => (this.#wake = resolve))
    }
    if (this.#failure !== undefined) throw new Error(`the background writer failed: ${this.#failure}`)
  }

  /** Resolves when nothing of it is open any more, and no command under way. */
  async stop(): Promise<void> {
    this.#worker.postMessage('stop')
    await this.#gone
  }
}

if (!isMainThread && parentPort) await work(parentPort, workerData as WriterOptions)

async function work(port: NonNullable<typeof parentPort>, options: WriterOptions): Promise<void> {
  const random = new Random(options.seed)
  const counts: WriterCounts = { writes: 0, flushes: 0, commands: 0 }
  const buffer = alignedBuffer(MOST_BYTES)
  let order: Order | 'stop' | undefined
  port.on('message', (message: Order | 'stop') => (order = message))
  const open = ({ path, sizeBytes }: WrittenDevice) => ({
    path,
    file: openSync(path, constants.O_RDWR | constants.O_DIRECT),
    sizeBytes
  })
  const own = open(options.own)
  let others: ReturnType<typeof open>[] = []
  const closeOthers = () => {
    for (const { file } of others) {
      // What it has mapped is to be in the pool's metadata, should the device be compared next.
      fsyncSync(file)
      closeSync(file)
    }
    others = []
  }
  let command = 0
  let nextCommandAt = performance.now() + options.commandsApart
  try {
    for (;;) {
      if (order !== undefined) {
        closeOthers()
        if (order === 'stop') break
        others = order.map(open)
        order = undefined
        port.postMessage({ kind: 'obeyed', counts: { ...counts } } satisfies Answer)
      }
      const { path, file, sizeBytes } = random.pick([own, ...others])
      const size = sectorBytes * random.integer(1, Math.min(MOST_BYTES, sizeBytes) / sectorBytes)
      const offset = sectorBytes * random.integer(0, (sizeBytes - size) / sectorBytes)
      buffer.fill(random.integer(1, 255), 0, size)
      try {
        writeSync(file, buffer, 0, size, offset)
      } catch (error) {
        const devices = `${run('blockdev', ['--getsize64', path]).trim()} bytes; ${run('dmsetup', ['status', '--noflush'])}`
        throw new Error(`${size} bytes at ${offset} of ${path}, ${sizeBytes} bytes, in fact ${devices}`, {
          cause: error
        })
      }
      counts.writes++
      if (random.chance(0.1)) {
        fsyncSync(file)
        counts.flushes++
      }
      if (performance.now() >= nextCommandAt && options.commands.length > 0) {
        const [program = '', ...words] = options.commands[command++ % options.commands.length]
        run(program, words)
        counts.commands++
        nextCommandAt = performance.now() + options.commandsApart
      }
      await sleep(2)
    }
    for (; command % Math.max(1, options.commands.length) !== 0; command++) {
      const [program = '', ...words] = options.commands[command % options.commands.length]
      run(program, words)
    }
  } catch (error) {
    port.postMessage({
      kind: 'failed',
      why: error instanceof Error ? [error.message, error.cause].map(String).join('; ') : String(error)
    } satisfies Answer)
  } finally {
    closeOthers()
    closeSync(own.file)
    port.close()
  }
}
