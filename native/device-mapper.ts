/**
 * The kernel's device-mapper, typed. A helper process does the work (device-mapper-worker.ts), because a call may block
 * uninterruptibly and for ever: it must not run on the event loop, nor in the shared thread pool.
 *
 * Calls start in the order in which they were made, one at a time. A call that takes longer than `patienceMs` no longer
 * holds up those behind it: they go on in a second helper, except for calls that would probably hang at the same
 * device. A call that takes longer than its deadline fails with DM_CALL_STUCK, and its helper is given up. So to order
 * two calls, wait for the first before making the second.
 *
 *   calls ──▶ queue ──▶ helper            one call at a time; queries that wait side by side go as one message
 *                  └──▶ second helper     only while the first is slow
 *                       given up …        killed, but the kernel has not let them go: no further call that could hang
 *                                         goes to a device that one of them hangs at, and none at all once there
 *                                         are `mostStuck`
 */
import { type DeltamapperError, invalid, shuttingDown } from '../src/errors.ts'
import type { Call, CallName, CallOutcome, CallResults, SuspendOptions } from './call.ts'
import { checkName, checkReference, checkTable, checkUuid } from './device.ts'
import type { DeviceInfo, DeviceNumber, DeviceReference, ListedDevice, TableRow, TargetVersion } from './device.ts'
import {
  describeCall,
  deviceOf,
  diedError,
  helperNotStarted,
  failedError,
  refusedBehindStuckError,
  stuckError
} from './device-mapper-error.ts'
import { type Ending, HelperProcess } from './helper-process.ts'
import type { NodeKeeper } from './udev.ts'

export type { DeviceInfo, DeviceNumber, DeviceReference, ListedDevice, TableRow, TargetVersion } from './device.ts'
export type { SuspendOptions } from './call.ts'
export { DeviceMapperError } from './device-mapper-error.ts'

export interface Notice {
  readonly call: CallName
  readonly device: string | undefined
  readonly lines: readonly string[]
}

export interface DeviceMapperOptions {
  /** The folder that holds `mapper/control` and the device nodes; `/dev` by default. */
  devDirectory?: string
  /** The shared library to load, if it has an unusual name or place. */
  libraryPath?: string
  /** What makes device nodes; by default found out at every call that changes them (see udev.ts). */
  nodeKeeper?: NodeKeeper
  /** How long udev may take for an event, in milliseconds; 5,000 by default. Keep it below the deadline. */
  udevTimeoutMs?: number
  /** How long a call may take, in milliseconds; 10,000 by default. Each call can have its own. */
  deadlineMs?: number
  /** After how many milliseconds a call no longer holds up others; 200 by default. */
  patienceMs?: number
  /** How many calls may be slow or stuck before those that could add to them are refused; 16 by default. */
  mostStuck?: number
  /** Called with messages of the library or udev about calls that succeeded, for the log. */
  onNotice?: (notice: Notice) => void
}

export interface CallOptions {
  /** How long this call may take, in milliseconds. */
  deadlineMs?: number
}

/**
 * Known to return even from a device that hangs, because they ask nothing of its target. Resuming and removing may free
 * such a device. Clearing drops the loaded table at once, and returns when queries of the live one are done.
 */
const alwaysAllowed: ReadonlySet<CallName> = new Set<CallName>([
  ...(['versions', 'targets', 'list', 'info', 'deps', 'table'] as const),
  ...(['resume', 'remove', 'clear', 'nodes'] as const)
])

/**
 * Of those, what is asked of one device after the other for a look at how they stand. A message between two processes
 * costs more than such a query, and a look is taken before each message of an answer.
 */
const queries: ReadonlySet<CallName> = new Set<CallName>(['info', 'deps', 'table'])
/** So that a call behind them does not wait for long. */
const MOST_TOGETHER = 32

interface Waiting {
  readonly call: Call
  readonly deadlineMs: number
  readonly resolve: (result: unknown) => void
  readonly reject: (error: Error) => void
}

export class DeviceMapper {
  readonly #options: DeviceMapperOptions
  readonly #waiting: Waiting[] = []
  /** Each helper with its running call, or queries; none while it is idle. */
  readonly #helpers = new Map<HelperProcess, readonly Call[]>()
  readonly #givenUp = new Map<HelperProcess, readonly Call[]>()
  #nextId = 1
  #closed = false
  #whenIdle: (() => void)[] = []

  constructor(options: DeviceMapperOptions = {}) {
    this.#options = options
  }

  /** Version of the library and of the kernel's device-mapper interface (not of the kernel). */
  async versions(options?: CallOptions): Promise<CallResults['versions']> {
    return this.#call({ call: 'versions' }, options)
  }

  /** The targets the kernel has loaded, with their versions. A target is often loaded only when first used. */
  async targets(options?: CallOptions): Promise<readonly TargetVersion[]> {
    return this.#call({ call: 'targets' }, options)
  }

  /** All devices, suspended and empty ones included. */
  async list(options?: CallOptions): Promise<readonly ListedDevice[]> {
    return this.#call({ call: 'list' }, options)
  }

  /** The state of a device; undefined when there is none of that name, UUID or number. Safe on a device that hangs. */
  async info(device: DeviceReference, options?: CallOptions): Promise<DeviceInfo | undefined> {
    checkReference(device)
    return this.#call({ call: 'info', device }, options)
  }

  /** The devices below the live table. Throws DM_NO_SUCH_DEVICE. */
  async deps(device: DeviceReference, options?: CallOptions): Promise<readonly DeviceNumber[]> {
    checkReference(device)
    return this.#call({ call: 'deps', device }, options)
  }

  /** The live table, or with `inactive` the loaded one; empty when there is none. Throws DM_NO_SUCH_DEVICE. */
  async table(device: DeviceReference, options?: CallOptions & { inactive?: boolean }): Promise<readonly TableRow[]> {
    checkReference(device)
    return this.#call({ call: 'table', device, inactive: options?.inactive ?? false }, options)
  }

  /**
   * The status of each target. With `flush`, the target may first write its cached state (a thin pool commits its
   * metadata): off by default, because a query should change nothing. Blocks on a suspended era device until that is
   * resumed. Throws DM_NO_SUCH_DEVICE.
   */
  async status(device: DeviceReference, options?: CallOptions & { flush?: boolean }): Promise<readonly TableRow[]> {
    checkReference(device)
    return this.#call({ call: 'status', device, flush: options?.flush ?? false }, options)
  }

  /**
   * Sends a message to the target at a sector (0 by default). Returns its answer, which few messages have. Throws
   * DM_DEVICE_BUSY, or DM_CALL_FAILED with the target's errno.
   */
  async message(
    device: DeviceReference,
    text: string,
    options?: CallOptions & { sector?: number }
  ): Promise<string | undefined> {
    checkReference(device)
    if (text === '' || text.includes('\0')) {
      throw invalid('a message cannot be empty or hold a NUL', 'send words separated by spaces')
    }
    return this.#call({ call: 'message', device, sector: options?.sector ?? 0, text }, options)
  }

  /**
   * Creates a device. With a table, it is loaded and resumed too, and if that fails nothing is left. Without a table,
   * the device is empty, and has no node before it is resumed with a table. Throws DM_DEVICE_BUSY when the name or UUID
   * is taken.
   */
  async create(
    name: string,
    options?: CallOptions & { uuid?: string; table?: readonly TableRow[]; readOnly?: boolean }
  ): Promise<DeviceInfo> {
    checkName(name)
    if (options?.uuid !== undefined) checkUuid(options.uuid)
    if (options?.table !== undefined) checkTable(options.table)
    const { uuid, table, readOnly = false } = options ?? {}
    return this.#call({ call: 'create', device: name, uuid, table, readOnly }, options)
  }

  /** Loads a table beside the live one; resuming puts it in place. Throws DM_NO_SUCH_DEVICE. */
  async reload(
    device: DeviceReference,
    table: readonly TableRow[],
    options?: CallOptions & { readOnly?: boolean }
  ): Promise<DeviceInfo> {
    checkReference(device)
    checkTable(table)
    return this.#call({ call: 'reload', device, table, readOnly: options?.readOnly ?? false }, options)
  }

  /** Drops a table that was loaded and not resumed. */
  async clear(device: DeviceReference, options?: CallOptions): Promise<DeviceInfo> {
    checkReference(device)
    return this.#call({ call: 'clear', device }, options)
  }

  /**
   * Holds all I/O back until the device is resumed. A notice warns if a device below is suspended already: a flush gets
   * stuck there.
   */
  async suspend(device: DeviceReference, options?: CallOptions & SuspendOptions): Promise<DeviceInfo> {
    checkReference(device)
    return this.#call({ call: 'suspend', device, ...suspendOptions(options) }, options)
  }

  /**
   * Lets I/O go on, with the loaded table if there is one (the options are for the suspend that swapping a live table
   * includes).
   */
  async resume(device: DeviceReference, options?: CallOptions & SuspendOptions): Promise<DeviceInfo> {
    checkReference(device)
    return this.#call({ call: 'resume', device, ...suspendOptions(options) }, options)
  }

  /** Throws DM_DEVICE_BUSY when the new name is taken. */
  async rename(device: DeviceReference, newName: string, options?: CallOptions): Promise<void> {
    checkReference(device)
    checkName(newName)
    await this.#call({ call: 'rename', device, newName }, options)
  }

  /**
   * Removes a device. In use, it fails with DM_DEVICE_BUSY; `deferred` then leaves it to the last user's close, `retry`
   * tries for five seconds first (something like udev often holds a device open for a moment).
   */
  async remove(
    device: DeviceReference,
    options?: CallOptions & { deferred?: boolean; retry?: boolean }
  ): Promise<'removed' | 'deferred'> {
    checkReference(device)
    const { deferred = false, retry = false } = options ?? {}
    return this.#call({ call: 'remove', device, deferred, retry }, options)
  }

  /**
   * Makes the node of a device under /dev/mapper, or removes it if there is no such device; without a name, does so for
   * all devices. For hosts without udev: calls that change nodes do it themselves.
   */
  async makeNodes(name?: string, options?: CallOptions): Promise<void> {
    if (name !== undefined) checkName(name)
    await this.#call({ call: 'nodes', device: name }, options)
  }

  /** The helpers that run or wait for work, and those given up that the kernel has not let go yet. */
  get helpers(): {
    readonly pids: readonly number[]
    readonly givenUp: readonly { readonly pid: number; readonly call: string }[]
  } {
    return {
      pids: [...this.#helpers.keys()].flatMap(({ pid }) => pid ?? []),
      givenUp: [...this.#givenUp].flatMap(([{ pid }, calls]) =>
        pid === undefined ? [] : { pid, call: calls.map(describeCall).join(', ') }
      )
    }
  }

  /** Refuses further calls, waits for running ones (at most their deadlines), and lets the helpers end. */
  async close(): Promise<void> {
    this.#closed = true
    for (const { reject } of this.#waiting.splice(0)) reject(closedError())
    if ([...this.#helpers.keys()].some((each) => !each.idle))
      await new Promise<void>((resolve) => this.#whenIdle.push(resolve))
    for (const helper of this.#helpers.keys()) helper.dismiss()
  }

  async #call<C extends Call>(call: C, options: CallOptions | undefined): Promise<CallResults[C['call']]> {
    if (this.#closed) throw closedError()
    const deadlineMs = options?.deadlineMs ?? this.#options.deadlineMs ?? 10_000
    const result = await new Promise<unknown>((resolve, reject) => {
      this.#waiting.push({ call, deadlineMs, resolve, reject })
      // What is asked in the same turn goes along.
      if (queries.has(call.call)) process.nextTick(() => this.#dispatch())
      else this.#dispatch()
    })
    return result as CallResults[C['call']]
  }

  /** Starts as many of the waiting calls as may run now: one, and one more for each that is slow. */
  #dispatch(): void {
    for (;;) {
      const helpers = [...this.#helpers.keys()]
      if (helpers.some((each) => !each.idle && !each.slow)) return
      const next = this.#waiting.findIndex(({ call }) => !this.#isHeldBack(call))
      const together = next < 0 ? [] : this.#waiting.splice(next, this.#togetherFrom(next))
      const [waiting] = together
      if (waiting === undefined) return
      const stuck = this.#stuckBefore(waiting.call)
      if (stuck !== undefined) {
        for (const { call, reject } of together) reject(refusedBehindStuckError(call, stuck))
        continue
      }
      let helper: HelperProcess
      try {
        helper = helpers.find((each) => each.idle) ?? this.#start()
      } catch (error) {
        // Node throws some reasons why a process cannot be started, such as no memory; others are an event.
        for (const { call, reject } of together) reject(helperNotStarted(call, error as Error))
        continue
      }
      void this.#run(helper, together)
    }
  }

  /** How many of the waiting calls go as one: queries that stand side by side, and may take equally long. */
  #togetherFrom(first: number): number {
    const [{ call, deadlineMs }, ...behind] = this.#waiting.slice(first, first + MOST_TOGETHER)
    if (!queries.has(call.call)) return 1
    const end = behind.findIndex((each) => !queries.has(each.call.call) || each.deadlineMs !== deadlineMs)
    return end < 0 ? behind.length + 1 : end + 1
  }

  /** A call that could hang waits as long as one at the same device is slow: that one will return, or be given up. */
  #isHeldBack(call: Call): boolean {
    if (alwaysAllowed.has(call.call)) return false
    const device = deviceOf(call)
    return [...this.#helpers.values()].flat().some((atWork) => deviceOf(atWork) === device)
  }

  /** The reason not to try a call that could hang; undefined when there is none. */
  #stuckBefore(call: Call): string | undefined {
    if (alwaysAllowed.has(call.call)) return undefined
    const device = deviceOf(call)
    const same = [...this.#givenUp.values()].flat().find((each) => deviceOf(each) === device)
    if (same !== undefined) return `${describeCall(same)} is still stuck in the kernel`
    const slow = [...this.#helpers.keys()].filter((each) => each.slow).length + this.#givenUp.size
    return slow < (this.#options.mostStuck ?? 16) ? undefined : `${slow} other calls are slow or stuck in the kernel`
  }

  #start(): HelperProcess {
    const { devDirectory = '/dev', libraryPath, nodeKeeper, udevTimeoutMs = 5000, patienceMs = 200 } = this.#options
    const configuration = {
      devDirectory,
      udevTimeoutMs,
      ...(libraryPath === undefined ? {} : { libraryPath }),
      ...(nodeKeeper === undefined ? {} : { nodeKeeper })
    }
    const helper = new HelperProcess(configuration, patienceMs, {
      onSlow: () => this.#dispatch(),
      onGone: () => {
        this.#helpers.delete(helper)
        this.#givenUp.delete(helper)
      }
    })
    this.#helpers.set(helper, [])
    return helper
  }

  async #run(helper: HelperProcess, together: readonly Waiting[]): Promise<void> {
    const calls = together.map(({ call }) => call)
    this.#helpers.set(helper, calls)
    const ending = await helper.run({ id: this.#nextId++, calls }, together[0].deadlineMs)
    if (this.#helpers.has(helper)) this.#helpers.set(helper, [])
    if (ending.how === 'stuck') {
      this.#helpers.delete(helper)
      this.#givenUp.set(helper, calls)
    }
    for (const [i, waiting] of together.entries()) {
      if (ending.how === 'answered') this.#deliver(helper, waiting, ending.reply.outcomes[i])
      else waiting.reject(endedError(waiting.call, ending, helper.pid))
    }
    // An extra helper is not kept.
    const idle = [...this.#helpers.keys()].filter((each) => each.idle)
    for (const extra of idle.slice(1)) this.#dismiss(extra)
    this.#dispatch()
    if ([...this.#helpers.keys()].every((each) => each.idle)) for (const done of this.#whenIdle.splice(0)) done()
  }

  #deliver(helper: HelperProcess, { call, resolve, reject }: Waiting, { result, failure, notices }: CallOutcome): void {
    if (failure === undefined) {
      if (notices.length > 0) this.#options.onNotice?.({ call: call.call, device: deviceOf(call), lines: notices })
      resolve(result)
      return
    }
    reject(failedError(call, failure))
    // The library remembers for ever that it once failed to reach the kernel: the next call begins with a new helper.
    if (failure.reason === 'library' || failure.reason === 'control' || failure.reason === 'permission')
      this.#dismiss(helper)
  }

  #dismiss(helper: HelperProcess): void {
    this.#helpers.delete(helper)
    helper.dismiss()
  }
}

/** Why a call has no outcome. */
function endedError(call: Call, ending: Exclude<Ending, { how: 'answered' }>, pid: number | undefined): Error {
  switch (ending.how) {
    case 'stuck':
      return stuckError(call, ending.afterMs, pid)
    case 'died':
      return diedError(call, ending.why)
    case 'not started':
      return helperNotStarted(call, ending.cause)
  }
}

function suspendOptions({ lockfs = true, flush = true }: SuspendOptions = {}): Required<SuspendOptions> {
  return { lockfs, flush }
}

function closedError(): DeltamapperError {
  return shuttingDown('device-mapper calls are over: closing', 'ask again after the restart')
}
