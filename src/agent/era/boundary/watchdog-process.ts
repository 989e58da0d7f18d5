/**
 * The process that owns one suspension of a tracked volume, from suspend to resume. Whatever happens to the agent, this
 * process resumes the device, when the deadline passes at the latest.
 *
 * While a device is suspended, everything that writes to it waits. If the agent itself suspended it and died, the
 * machine would hang until somebody comes. So this process does as little as possible, has a process group of its own,
 * and ignores the signals that end processes politely. Everything that it needs is loaded, and its helper runs, before
 * it suspends.
 *
 * There is one case left, apart from a power cut: agent, watchdog and helper are all killed at once, for example with
 * their container. Then the next agent resumes the device when it recovers.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { DeviceMapper } from '../../../../native/device-mapper.ts'
import { endAtOnce } from '../../../../native/end-at-once.ts'
import { refuseDiscards } from '../../../devicemapper/block-queue.ts'
import { dropInactiveTable } from '../../../devicemapper/inactive-table.ts'
import { asDeltamapperError } from '../../../errors.ts'
import type { WatchdogAnswer, WatchdogQuestion, WatchdogStart } from './watchdog.ts'

/** How long to wait before a failed resume is tried again, in milliseconds. */
const RETRY_MS = 200

const { device, guard, deadlineMs } = JSON.parse(process.argv[2] ?? '') as WatchdogStart
const deviceMapper = new DeviceMapper()
/** performance.now() when the suspension began; undefined without one. */
let since: number | undefined
let timer: NodeJS.Timeout | undefined
/** The outcome of the last suspension, once it has ended. */
let ended: { ms: number; held: boolean } | undefined
let ending: Promise<void> | undefined
/** Settles when the suspending call has returned. */
let suspending: Promise<unknown> = Promise.resolve()

async function suspend(): Promise<WatchdogAnswer> {
  since = performance.now()
  timer = setTimeout(() => void release(false), deadlineMs)
  try {
    const call = deviceMapper.suspend(device, { deadlineMs })
    suspending = call.catch(() => undefined)
    await call
    return { answer: 'suspended', ms: performance.now() - since }
  } catch (thrown) {
    const { code, message, remedy } = asDeltamapperError(thrown)
    await release(false)
    return { answer: 'failed', code, message, remedy }
  }
}

/** Ends the suspension, once. @param inTime the caller wants it ended now */
function release(inTime: boolean): Promise<void> {
  if (since === undefined) return Promise.resolve()
  const begun = since
  return (ending ??= (async () => {
    clearTimeout(timer)
    let held = inTime
    for (;;) {
      try {
        const below = await deviceMapper.info(guard)
        if (below?.suspended) {
          await dropInactiveTable(deviceMapper, guard)
          await deviceMapper.resume(guard)
          await refuseDiscards(below)
        }
        const info = await deviceMapper.info(device)
        held &&= info?.suspended === true
        // Drops a table that any process has loaded. To grow, the agent puts its own table in place itself.
        await dropInactiveTable(deviceMapper, device)
        // A call that hangs may be about to suspend it: resuming waits for that call, and undoes it.
        if (info) await deviceMapper.resume(device, { deadlineMs: 60_000 })
        await suspending
        if (!(await deviceMapper.info(device))?.suspended) break
      } catch {
        await sleep(RETRY_MS)
      }
    }
    ended = { ms: performance.now() - begun, held }
  })())
}

async function answer(question: WatchdogQuestion): Promise<WatchdogAnswer> {
  if (question === 'suspend') return suspend()
  await release(true)
  return { answer: 'resumed', ...(ended ?? { ms: 0, held: false }) }
}

function say(message: WatchdogAnswer): void {
  // The agent may be gone by now; `disconnect` follows.
  if (process.connected) process.send?.(message, undefined, undefined, () => undefined)
}

process.on('message', (question: WatchdogQuestion) => void answer(question).then(say))
process.on('disconnect', () => {
  void release(false).finally(endAtOnce)
})
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => undefined)

// The helper must run before anything is suspended.
await deviceMapper.info(device)
say('ready')
