/**
 * A device that hangs, played by a read call that answers when it is told to: how many requests it gets, and how the others end.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import test from 'ava'
import { DeviceReads, type ReadCall, Unanswered } from '../../src/devicemapper/device-reads.ts'

const buffer = new Uint8Array(4096)

/** A device whose requests stay where they are until they are let go. */
class HangingDevice {
  readonly asked: number[] = []
  readonly #done = new Map<number, (error: Error | null, bytesRead: number) => void>()
  readonly read: ReadCall = (_file, _into, _start, _bytes, position, done) => {
    this.asked.push(position)
    this.#done.set(position, done)
  }

  answer(position: number, error: Error | null = null): void {
    const done = this.#done.get(position)
    this.#done.delete(position)
    done?.(error, error === null ? 4096 : 0)
  }
}

function request(reads: DeviceReads, position: number, deadlineMs = 60_000): Promise<number> {
  return reads.read(3, buffer, 0, 4096, position, { deadlineMs })
}

test('so many at once, the rest in order as others come back', async (t) => {
  const device = new HangingDevice()
  const reads = DeviceReads.join('in order', device.read)
  const answers = Array.from({ length: 40 }, (_, position) => request(reads, position))
  t.deepEqual(
    device.asked,
    Array.from({ length: 16 }, (_, position) => position)
  )
  for (let position = 0; position < 40; position++) {
    device.answer(position)
    await Promise.resolve()
    t.is(device.asked.length, Math.min(40, 17 + position))
  }
  t.deepEqual(await Promise.all(answers), Array<number>(40).fill(4096))
  t.deepEqual(
    device.asked,
    Array.from({ length: 40 }, (_, position) => position)
  )
  reads.leave()
})

test('an error is that of its request alone', async (t) => {
  const device = new HangingDevice()
  const reads = DeviceReads.join('errors', device.read)
  const [bad, good] = [request(reads, 0), request(reads, 1)]
  device.answer(0, new Error('EIO'))
  device.answer(1)
  await t.throwsAsync(bad, { message: 'EIO' })
  t.is(await good, 4096)
  reads.leave()
})

test('a device that hangs is asked no more, and what waits for it fails in time', async (t) => {
  const device = new HangingDevice()
  const [reads, other] = [DeviceReads.join('hangs', device.read), DeviceReads.join('is well', device.read)]
  const stuck = await t.throwsAsync(request(reads, 0, 50), { instanceOf: Unanswered })
  t.like(stuck, { sent: true, message: 'there was no answer for 0.05 s' })
  await sleep(1000)
  const refused = await t.throwsAsync(request(reads, 1, 50), { instanceOf: Unanswered })
  t.false(refused?.sent)
  t.deepEqual(device.asked, [0])
  const waiting = request(reads, 2)
  t.deepEqual(device.asked, [0])
  // Nobody else notices.
  const elsewhere = request(other, 100)
  t.deepEqual(device.asked, [0, 100])
  device.answer(100)
  t.is(await elsewhere, 4096)
  // It comes back: what still waits goes on, what was given up does not.
  device.answer(0)
  t.deepEqual(device.asked, [0, 100, 2])
  device.answer(2)
  t.is(await waiting, 4096)
  reads.leave()
  other.leave()
})

test('whoever opens a device that still owes an answer finds it so; once it has answered, it is forgotten', async (t) => {
  const device = new HangingDevice()
  const reads = DeviceReads.join('owes', device.read)
  await t.throwsAsync(request(reads, 0, 10), { instanceOf: Unanswered })
  reads.leave()
  const again = DeviceReads.join('owes', device.read)
  t.is(again, reads)
  again.leave()
  device.answer(0)
  const fresh = DeviceReads.join('owes', device.read)
  t.not(fresh, reads)
  fresh.leave()
})

test('a pace is kept, and only at the device it is for', async (t) => {
  const immediate: ReadCall = (_file, _into, _start, bytes, _position, done) => {
    done(null, bytes)
  }
  const [slow, fast] = ['slow', 'fast'].map((key) => DeviceReads.join(key, immediate))
  const mebibyte = 2 ** 20
  const terms = { deadlineMs: 1, bytesPerSecond: 4 * mebibyte }
  const began = performance.now()
  // The wait is no part of the deadline: nobody hangs.
  const all = Array.from({ length: 5 }, (_, i) => slow.read(3, buffer, 0, mebibyte / 4, i, terms))
  t.is(await fast.read(3, buffer, 0, mebibyte, 0, terms), mebibyte)
  t.deepEqual(await Promise.all(all), Array<number>(5).fill(mebibyte / 4))
  // The first one goes at once, four quarters of a MiB at 4 MiB/s before the last one has its turn.
  t.true(performance.now() - began > 240)
  slow.leave()
  fast.leave()
})
