/**
 * A shop that never closes: writes into a file system, on and on, while everything else happens around it. It changes records of a
 * database here and there, appends to a journal, receives and deletes mail, and makes every round durable before the next.
 *
 *   node demo/workload.ts FOLDER MEBIBYTES      until its parent sends a message; sends `Progress` after every round
 *
 * Every record of the database carries a checksum: whoever reads it back from a restored snapshot can tell a whole record from a torn
 * one.
 */
import { randomFillSync } from 'node:crypto'
import { open, readFile, mkdir, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { crc32 } from 'node:zlib'

/** How much the shop has made durable since it opened. */
export interface Progress {
  writes: number
  bytes: number
}

const RECORD_BYTES = 4096
const RECORDS_A_ROUND = 6
const MAILS_KEPT = 60
const PAUSE_MS = 50
const databaseName = 'orders.db'

/** Content that does not compress, and is cheap to make. */
const noise = randomFillSync(Buffer.alloc(4 * 2 ** 20))

/** A record: checksum of what follows, its number, how often the shop has written one, and content. */
function record(number: number, sequence: number): Buffer {
  const start = Math.floor(Math.random() * (noise.length - RECORD_BYTES))
  const bytes = Buffer.from(noise.subarray(start, start + RECORD_BYTES))
  bytes.writeUInt32LE(number, 4)
  bytes.writeUInt32LE(sequence, 8)
  bytes.writeUInt32LE(crc32(bytes.subarray(4)), 0)
  return bytes
}

/** Reads a database back. Returns how many records it has, and how many of them are whole and in their place. */
export async function readRecords(folder: string): Promise<{ records: number; whole: number }> {
  const file = await readFile(join(folder, databaseName))
  const records = file.length / RECORD_BYTES
  let whole = 0
  for (let number = 0; number < records; number++) {
    const bytes = file.subarray(number * RECORD_BYTES, (number + 1) * RECORD_BYTES)
    if (bytes.readUInt32LE(0) === crc32(bytes.subarray(4)) && bytes.readUInt32LE(4) === number) whole++
  }
  return { records, whole }
}

async function work(folder: string, databaseMebibytes: number): Promise<void> {
  const progress: Progress = { writes: 0, bytes: 0 }
  const count = (bytes: number) => {
    progress.writes++
    progress.bytes += bytes
  }
  const records = (databaseMebibytes * 2 ** 20) / RECORD_BYTES
  const mail = (number: number) => join(folder, 'mail', `${number}.eml`)
  await mkdir(join(folder, 'mail'))
  const database = await open(join(folder, databaseName), 'w')
  const journal = await open(join(folder, 'journal.log'), 'a')

  for (let number = 0; number < records; number += 256) {
    const piece = Buffer.concat(Array.from({ length: 256 }, (_, i) => record(number + i, 0)))
    await database.write(piece, 0, piece.length, number * RECORD_BYTES)
  }
  await database.datasync()

  let isOpen = true
  for (const event of ['message', 'disconnect']) process.once(event, () => (isOpen = false))
  for (let round = 1; isOpen; round++) {
    for (let i = 0; i < RECORDS_A_ROUND; i++) {
      // Some customers order all the time, and many hardly ever.
      const number = Math.floor(records * Math.random() ** 3)
      await database.write(record(number, round), 0, RECORD_BYTES, number * RECORD_BYTES)
      count(RECORD_BYTES)
    }
    const entry = `round ${round}: ${RECORDS_A_ROUND} orders, ${new Date().toISOString()}\n`
    await journal.write(entry)
    count(entry.length)
    if (round % 5 === 0) {
      const letter = noise.subarray(0, 1000 + Math.floor(Math.random() * 30_000))
      await writeFile(mail(round), letter, { flush: true })
      await rm(mail(round - 5 * MAILS_KEPT), { force: true })
      count(letter.length)
    }
    await database.datasync()
    await journal.datasync()
    process.send?.(progress)
    await sleep(PAUSE_MS)
  }
  await database.close()
  await journal.close()
  process.disconnect()
}

if (import.meta.main) await work(process.argv[2] ?? '', Number(process.argv[3]))
