/**
 * Device-mapper inside the kernel lab, through Debian's dmsetup: what kernel tests and recording scripts build pools with.
 *
 * Sizes and offsets are bytes here; dm tables count 512-byte sectors.
 */
import { execFileSync, spawn } from 'node:child_process'
import {
  closeSync,
  constants,
  ftruncateSync,
  mkdtempSync,
  openSync,
  readFileSync,
  readSync,
  writeFileSync,
  writeSync
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

export const sectorBytes = 512

// Node has it; TypeScript's library for Node leaves it out.
declare const WebAssembly: { Memory: new (options: { initial: number }) => { buffer: ArrayBuffer } }

/**
 * A small shell that starts programs. Node could do it as well, but a fork of Node copies the page tables of a large process, which
 * takes longer in this kernel than the program itself. Requests are NUL-separated words behind their count, an answer is the
 * exit status; output goes to files.
 */
const starterScript = `
while read -r -d '' -u 3 count; do
  mapfile -d '' -n "$count" -t -u 3 words
  "\${words[@]}" </dev/null >"$1/stdout" 2>"$1/stderr" 3<&- 4>&-
  printf '%03d' $? >&4
done 3<"$1/requests" 4>"$1/answers"`

class Starter {
  readonly #folder = mkdtempSync(join(tmpdir(), 'starter-'))
  readonly #requests: number
  readonly #answers: number

  constructor() {
    const fifos = ['requests', 'answers'].map((each) => join(this.#folder, each))
    execFileSync('mkfifo', fifos)
    spawn('bash', ['-c', starterScript, 'starter', this.#folder], { stdio: 'ignore' }).unref()
    const [requests = '', answers = ''] = fifos
    this.#requests = openSync(requests, 'w')
    this.#answers = openSync(answers, 'r')
  }

  start(words: readonly string[]): string {
    writeSync(this.#requests, [words.length, ...words].map((each) => `${each}\0`).join(''))
    const answer = Buffer.alloc(3)
    if (readSync(this.#answers, answer) !== 3)
      throw new Error(`the shell that starts programs is gone: ${words.join(' ')}`)
    const status = Number(answer)
    if (status === 0) return readFileSync(join(this.#folder, 'stdout'), 'utf8')
    const said = readFileSync(join(this.#folder, 'stderr'), 'utf8').trim()
    throw new Error(`${words.join(' ')}: exit status ${status}: ${said}`)
  }
}

let starter: Starter | undefined

/** Runs a program and returns its stdout. Throws an Error that holds its stderr. One at a time. */
export function run(program: string, args: readonly string[]): string {
  starter ??= new Starter()
  return starter.start([program, ...args])
}

/** Creates (and activates) a mapped device and returns its path. `table`: lines of `start length target arguments`, in sectors. */
export function createDevice(name: string, table: string, ...options: string[]): string {
  run('dmsetup', ['create', name, '--table', table, ...options])
  return `/dev/mapper/${name}`
}

export function removeDevice(name: string): void {
  run('dmsetup', ['remove', name])
}

/** Replaces a device's table the way LVM does: suspended in between, so that no I/O is lost or sees half of each. */
export function reloadDevice(name: string, table: string): void {
  run('dmsetup', ['suspend', name])
  run('dmsetup', ['load', name, '--table', table])
  run('dmsetup', ['resume', name])
}

/** Sends a target message, such as `create_thin 0` to a pool. */
export function sendMessage(name: string, message: string): void {
  run('dmsetup', ['message', name, '0', message])
}

/** A part of a block device as a device of its own; offset and size in bytes, multiples of 512. */
export function createLinear(name: string, device: string, offsetBytes: number, sizeBytes: number): string {
  return createDevice(name, `0 ${sizeBytes / sectorBytes} linear ${device} ${offsetBytes / sectorBytes}`)
}

export interface ThinPoolOptions {
  metadataDevice: string
  dataDevice: string
  dataBytes: number
  blockBytes: number
  /** Features of the thin-pool target, such as `skip_block_zeroing`. */
  features?: readonly string[]
}

/** The table of a thin pool (kernel: Documentation/admin-guide/device-mapper/thin-provisioning.rst). */
export function thinPoolTable(pool: ThinPoolOptions): string {
  const features = pool.features ?? []
  const words = [pool.metadataDevice, pool.dataDevice, pool.blockBytes / sectorBytes, 0, features.length, ...features]
  return `0 ${pool.dataBytes / sectorBytes} thin-pool ${words.join(' ')}`
}

/** The table of a thin device. Its size is only here: the pool's metadata does not know it. */
export function thinTable(poolName: string, thinId: number, sizeBytes: number): string {
  return `0 ${sizeBytes / sectorBytes} thin /dev/mapper/${poolName} ${thinId}`
}

/** Overwrites the start of a device: the kernel formats a metadata device only when its first block is all zero. */
export function zeroStart(device: string, bytes = 4096): void {
  const file = openSync(device, constants.O_WRONLY | constants.O_SYNC)
  try {
    writeSync(file, new Uint8Array(bytes))
  } finally {
    closeSync(file)
  }
}

/** Size of a block device in bytes, as the kernel has it. */
export function deviceBytes(device: string): number {
  return Number(run('blockdev', ['--getsize64', device]))
}

/** The kernel's version, such as 6.1.176. */
export function kernelRelease(): string {
  return readFileSync('/proc/sys/kernel/osrelease', 'utf8').trim()
}

/** Whether the kernel is of that version, or later: kernels differ in the errno that they give for one and the same thing. */
export function isKernelSince(major: number, minor: number): boolean {
  const [ownMajor = 0, ownMinor = 0] = kernelRelease().split('.').map(Number)
  return ownMajor > major || (ownMajor === major && ownMinor >= minor)
}

/**
 * Lets discards through a device that was closed to them by its `discard_max_bytes`, a file of sysfs. From some kernel between 6.1
 * and 6.12 on, a limit of 0 cannot be raised by writing to it; a table that is loaded anew raises it on all of them.
 */
export function openToDiscards(name: string, limit: string): void {
  try {
    writeFileSync(limit, '1073741824')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EINVAL') throw error
    reloadDevice(name, run('dmsetup', ['table', name]).trim())
  }
}

/** Memory that O_DIRECT takes: page-aligned, which only WebAssembly's is for certain. */
export function alignedBuffer(bytes: number): Uint8Array {
  return new Uint8Array(new WebAssembly.Memory({ initial: Math.ceil(bytes / 65536) }).buffer, 0, bytes)
}

/** Copies a whole device, read around the page cache, into a file that has holes where the device is zero. */
export function copyOut(device: string, path: string): void {
  const buffer = alignedBuffer(2 ** 20)
  const pieceBytes = 65536
  const zeros = Buffer.alloc(pieceBytes)
  const from = openSync(device, constants.O_RDONLY | constants.O_DIRECT)
  const to = openSync(path, 'w')
  try {
    let at = 0
    for (let read; (read = readSync(from, buffer, 0, buffer.length, at)) > 0; at += read) {
      for (let piece = 0; piece < read; piece += pieceBytes) {
        const part = buffer.subarray(piece, Math.min(piece + pieceBytes, read))
        if (zeros.compare(part) !== 0) writeSync(to, part, 0, part.length, at + piece)
      }
    }
    ftruncateSync(to, at)
  } finally {
    closeSync(from)
    closeSync(to)
  }
}
