/** The node and its block devices, as `systeminformation` reports them (node-worker.ts), within a deadline. */
import { availableParallelism, hostname, machine, release, totalmem } from 'node:os'
import { extname } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Worker } from 'node:worker_threads'
import { DeltamapperError, shuttingDown } from '../../errors.ts'
import type { Examination, NodeFacts } from './examination.ts'
import type { NodeAnswer, NodeQuestion, SystemFacts } from './node-worker.ts'
import { probe, SingleLook } from './probe.ts'

const FAREWELL_MS = 1000

/** What Node knows without asking anybody; the rest is empty. */
export function nodeItself(): NodeFacts {
  return {
    hostname: hostname(),
    operatingSystem: '',
    kernel: release(),
    architecture: machine(),
    virtualization: '',
    memoryBytes: totalmem(),
    processors: availableParallelism()
  }
}

export class NodeInventory {
  readonly #system = new SingleLook(async () => (await this.#ask('system')).system)
  readonly #devices = new SingleLook(async () => (await this.#ask('devices')).devices)
  readonly #workers = new Set<Worker>()
  #known: SystemFacts | undefined
  #closed = false

  async node(deadlineMs: number): Promise<NodeFacts> {
    // It does not change while the process runs.
    const { value, problem } = await probe('the operating system', deadlineMs, async () => {
      return (this.#known ??= await this.#system.take())
    })
    return { ...nodeItself(), ...value, ...(problem && { problem }) }
  }

  /** @param suspended suspended devices: opening one waits, so all devices are left out then */
  async blockDevices(deadlineMs: number, suspended: readonly string[]): Promise<Examination['blockDevices']> {
    const { value, problem } = await probe('the list of block devices (lsblk)', deadlineMs, async () => {
      if (suspended.length === 0) return this.#devices.take()
      throw new DeltamapperError(
        'DM_DEVICE_BUSY',
        `block devices were not listed, because ${suspended.join(', ')} is suspended, and lsblk might wait for it`,
        'ask again once it is resumed'
      )
    })
    return { devices: value ?? [], ...(problem && { problem }) }
  }

  /** Ends a running look, or stops waiting for it after a second: a thread that waits for a program cannot be ended. */
  async close(): Promise<void> {
    this.#closed = true
    const ended = Promise.all([...this.#workers].map((each) => each.terminate()))
    await Promise.race([ended, sleep(FAREWELL_MS, undefined, { ref: false })])
  }

  async #ask<Q extends NodeQuestion>(question: Q): Promise<Extract<NodeAnswer, { of: Q }>> {
    if (this.#closed) throw shuttingDown()
    const file = new URL(`./node-worker${extname(import.meta.filename)}`, import.meta.url)
    const worker = new Worker(file, { name: 'node inventory', execArgv: [] })
    // A program that never ends must not keep this process.
    worker.unref()
    this.#workers.add(worker)
    worker.on('exit', () => this.#workers.delete(worker))
    try {
      return await new Promise((resolve, reject) => {
        worker.on('message', resolve)
        worker.on('error', reject)
        worker.on('exit', (code) => reject(new Error(`the thread that asks for ${question} ended with ${code}`)))
        worker.postMessage(question)
      })
    } finally {
      void worker.terminate()
    }
  }
}
