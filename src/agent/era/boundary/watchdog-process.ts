/**
 * The process that owns one suspension of a tracked volume, from suspend to resume: whatever becomes of the agent, the device comes back, at
 * the latest when the deadline has passed.
 *
 * While a device is suspended, everything that writes to it waits. Were that the agent's own doing, its death in between would leave the
 * machine standing until somebody comes. So there is as little here as can go wrong, in a process group of its own, deaf to signals that end
 * processes politely. What it needs is loaded and its helper is running before anything is suspended.
 *
 * What is left is the death of all of them at once, a power cut aside: a whole container killed. Then the next agent resumes the device when
 * it settles what was left unfinished.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { DeviceMapper } from '../../../../native/device-mapper.ts'
import { endAtOnce } from '../../../../native/end-at-once.ts'
import { refuseDiscards } from '../../../devicemapper/block-queue.ts'
import { dropInactiveTable } from '../../../devicemapper/inactive-table.ts'
import { asDeltamapperError } from '../../../errors.ts'
import type { WatchdogAnswer, WatchdogQuestion, WatchdogStart } from './watchdog.ts'

/** How long to wait before what could not be resumed is tried again, in milliseconds. */
const RETRY_MS = 200

const { device, guard, deadlineMs } = JSON.parse(process.argv[2] ?? '') as WatchdogStart
const deviceMapper = new DeviceMapper()
/** performance.now() when the suspension began; undefined while there is none. */
let since: number | undefined
let timer: NodeJS.Timeout | undefined
/** What has become of the last suspension, once it has been ended. */
let ended: { ms: number; held: boolean } | undefined
let ending: Promise<void> | undefined
/** Settles when the call that suspends has come back. */
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

/** Ends the suspension, once. @param inTime whoever asked for it wants it ended now */
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
        // Whoever has loaded it: growing puts its own in place itself.
        await dropInactiveTable(deviceMapper, device)
        // It may be about to be suspended, by a call that hangs: resuming waits for that, and ends it.
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
  // The agent may have gone meanwhile; `disconnect` follows.
  if (process.connected) process.send?.(message, undefined, undefined, () => undefined)
}

process.on('message', (question: WatchdogQuestion) => void answer(question).then(say))
process.on('disconnect', () => {
  void release(false).finally(endAtOnce)
})
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => undefined)

// Its helper has to be there before anything is suspended.
await deviceMapper.info(device)
say('ready')
