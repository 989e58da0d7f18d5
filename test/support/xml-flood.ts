/**
 * More XML than any pool has, from a process of its own straight into `deltamapper delta --xml -`: the memory of the one that reads it must
 * not grow. Nothing is stored.
 *
 *   node test/support/xml-flood.ts BYTES      prints thin_delta's XML of about so many bytes, every run one block long
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { projectFolder, projectNode } from '../../scripts/setup.mjs'

const BLOCK = 65536
/** Numbers of ten digits from the first run to the last: lines keep their length, and only digits have to be written anew. */
const FIRST_BLOCK = 1_000_000_000
const LINES = ['    <different begin="0000000000" length="1"/>\n', '    <same begin="0000000000" length="1"/>\n']
const PAIR_BYTES = LINES.join('').length
const PAIRS_AT_ONCE = 12_000

export interface FloodFigures {
  bytes: number
  extents: number
  seconds: number
  /** Resident memory of the reader in MiB: after a tenth of the way, at the end, and the most there ever was. */
  earlyMiB: number
  lateMiB: number
  peakMiB: number
}

/** Runs both to their end. @throws Error when the reader fails or has not seen every run */
export async function flood(bytes: number): Promise<FloodFigures> {
  const pairs = pairsOf(bytes)
  const size = (FIRST_BLOCK + 4 * pairs) * BLOCK
  const words = ['delta', '--xml', '-', '--size', String(size), '-o', 'map']
  const began = performance.now()
  const reader = spawn(projectNode, [join(projectFolder, 'bin/deltamapper.js'), ...words], {
    stdio: ['pipe', 'pipe', 'inherit']
  })
  const writer = spawn(projectNode, [fileURLToPath(import.meta.url), String(bytes)], {
    // The pipe is handed over: nothing of it passes through this process.
    stdio: ['ignore', reader.stdin, 'inherit']
  })
  reader.stdin.destroy()
  const resident: number[] = []
  let peakMiB = 0
  const timer = setInterval(() => {
    resident.push(memoryMiB(reader.pid, 'VmRSS'))
    peakMiB = Math.max(peakMiB, memoryMiB(reader.pid, 'VmHWM'))
  }, 100)
  let map = ''
  reader.stdout.setEncoding('utf8').on('data', (text: string) => (map += text))
  const [[status]] = (await Promise.all([once(reader, 'close'), once(writer, 'close')])) as [[number | null], unknown]
  clearInterval(timer)
  if (status !== 0) throw new Error(`deltamapper ended with status ${status}`)
  const extents = Number(/(\d+) extents/.exec(map)?.[1])
  if (extents !== pairs) throw new Error(`${pairs} runs differ, and deltamapper found ${extents}`)
  const seen = resident.filter((each) => each > 0)
  return {
    bytes: pairs * PAIR_BYTES,
    extents,
    seconds: (performance.now() - began) / 1000,
    earlyMiB: Math.max(...seen.slice(0, Math.ceil(seen.length / 10))),
    lateMiB: Math.max(...seen.slice(-Math.ceil(seen.length / 10))),
    peakMiB
  }
}

function pairsOf(bytes: number): number {
  const pairs = Math.ceil(bytes / PAIR_BYTES / PAIRS_AT_ONCE) * PAIRS_AT_ONCE
  if (FIRST_BLOCK + 4 * pairs < 10 * FIRST_BLOCK) return pairs
  throw new RangeError(`${bytes} bytes are more than can be made`)
}

function memoryMiB(pid: number | undefined, field: 'VmRSS' | 'VmHWM'): number {
  try {
    const status = readFileSync(`/proc/${pid}/status`, 'utf8')
    return Number(new RegExp(`^${field}:\\s+([0-9]+) kB$`, 'm').exec(status)?.[1] ?? 0) / 1024
  } catch {
    return 0
  }
}

async function print(bytes: number): Promise<void> {
  const write = (content: string | Buffer) =>
    new Promise<void>((resolve, reject) => {
      process.stdout.write(content, (error) => (error ? reject(error) : resolve()))
    })
  await write('<superblock uuid="" time="1" transaction="1" data_block_size="128" nr_data_blocks="0">\n')
  await write('  <diff left="1" right="2">\n')
  const chunk = Buffer.from(LINES.join('').repeat(PAIRS_AT_ONCE))
  const pairs = pairsOf(bytes)
  for (let done = 0; done < pairs; done += PAIRS_AT_ONCE) {
    for (let i = 0; i < PAIRS_AT_ONCE; i++) {
      const block = FIRST_BLOCK + 4 * (done + i)
      putDigits(chunk, i * PAIR_BYTES + LINES[0].indexOf('0'), block)
      putDigits(chunk, i * PAIR_BYTES + LINES[0].length + LINES[1].indexOf('0'), block + 2)
    }
    await write(chunk)
  }
  await write('  </diff>\n</superblock>\n')
}

/** Ten of them, from the last to the first. */
function putDigits(chunk: Buffer, at: number, value: number): void {
  let rest = value
  for (let i = at + 9; i >= at; i--) {
    const next = Math.floor(rest / 10)
    chunk[i] = 0x30 + rest - 10 * next
    rest = next
  }
}

if (import.meta.main) await print(Number(process.argv[2]))
