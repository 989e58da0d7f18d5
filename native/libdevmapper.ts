/**
 * libdevmapper through FFI: the one place that knows its C ABI.
 *
 * Every function here blocks its thread until the kernel is done, which may be never. The library keeps globals and is
 * not thread-safe. So this runs in a helper process of its own (device-mapper-worker.ts), one call at a time.
 *
 * Types and constants follow libdevmapper.h; the soname's ABI has been stable since 2010, and new functions got new
 * symbols. Everything used here exists in 1.02.124 (2016).
 */
import { closeSync, lstatSync, openSync, readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { constants } from 'node:os'
import koffi from 'koffi'
import { CallFailed, type Call, type CallFailure, type HelperConfiguration } from './call.ts'
import { decodeDeviceNumber, nodeName } from './device.ts'
import type { DeviceInfo, DeviceNumber, DeviceReference, ListedDevice, TableRow, TargetVersion } from './device.ts'
import { StandardErrorCapture } from './standard-error.ts'
import { nodeKeeper, surroundings, type NodeKeeper } from './udev.ts'

/** The soname on Debian and its kin, on Fedora, Alpine, Arch and most others, on SUSE. */
const usualNames = ['libdevmapper.so.1.02.1', 'libdevmapper.so.1.02', 'libdevmapper.so.1.03']

/**
 * The control node's number, fixed since Linux 2.6.36 (MISC_MAJOR and MAPPER_CTRL_MINOR in linux/major.h and
 * miscdevice.h).
 */
const controlNumber: DeviceNumber = { major: 10, minor: 236 }

/** The task types (an anonymous enum in the header) that dm_task_create takes, in its order. */
const taskTypes = {
  create: 0,
  reload: 1,
  remove: 2,
  suspend: 4,
  resume: 5,
  info: 6,
  deps: 7,
  rename: 8,
  version: 9,
  status: 10,
  table: 11,
  list: 13,
  clear: 14,
  listVersions: 16,
  message: 17
} as const

/** Flags that travel to udev's rules in the upper half of a cookie. */
const udevFlags = { disableDmRules: 0x0001, disableSubsystemRules: 0x0002, disableLibraryFallback: 0x0020 } as const

/** How the library writes characters that udev refuses: not at all, or `\xNN` if needed. */
const mangling = { none: 0, automatic: 1 } as const

koffi.opaque('dm_task')

const dmInfoMembers = {
  exists: 'int',
  suspended: 'int',
  live_table: 'int',
  inactive_table: 'int',
  open_count: 'int32_t',
  event_nr: 'uint32_t',
  major: 'uint32_t',
  minor: 'uint32_t',
  read_only: 'int',
  target_count: 'int32_t',
  deferred_remove: 'int',
  internal_suspend: 'int'
} as const
type DmInfo = Record<keyof typeof dmInfoMembers, number>
koffi.struct('dm_info', dmInfoMembers)

/**
 * Lists are chains: `next` is the distance in bytes to the next entry, 0 in the last one; the name continues behind the
 * struct.
 */
const dmNames = koffi.struct('dm_names', { dev: 'uint64_t', next: 'uint32_t', name: koffi.array('char', 1) })
const dmVersions = koffi.struct('dm_versions', {
  next: 'uint32_t',
  version: koffi.array('uint32_t', 3),
  name: koffi.array('char', 1)
})
const dmDeps = koffi.struct('dm_deps', { count: 'uint32_t', filler: 'uint32_t', device: koffi.array('uint64_t', 1) })

type Pointer = bigint
/** Most functions return 1 for success and 0 for failure. */
type Success = number

interface Functions {
  dm_get_library_version(version: Buffer, size: number): Success
  dm_set_dev_dir(directory: string): Success
  dm_dir(): string
  dm_task_create(type: number): Pointer | null
  dm_task_destroy(task: Pointer): void
  dm_task_run(task: Pointer): Success
  dm_task_get_errno(task: Pointer): number
  dm_task_get_info(task: Pointer, info: object): Success
  dm_task_get_name(task: Pointer): string | null
  dm_task_get_uuid(task: Pointer): string | null
  dm_task_get_driver_version(task: Pointer, version: Buffer, size: number): Success
  dm_task_get_names(task: Pointer): Pointer | null
  dm_task_get_versions(task: Pointer): Pointer | null
  dm_task_get_deps(task: Pointer): Pointer | null
  dm_task_get_message_response(task: Pointer): string | null
  dm_get_next_target(
    task: Pointer,
    next: Pointer | null,
    start: [number | bigint],
    length: [number | bigint],
    type: [string | null],
    params: [string | null]
  ): Pointer | null
  dm_task_set_name(task: Pointer, name: string): Success
  dm_task_set_uuid(task: Pointer, uuid: string): Success
  dm_task_set_major_minor(task: Pointer, major: number, minor: number, fallback: number): Success
  dm_task_set_newname(task: Pointer, name: string): Success
  dm_task_add_target(task: Pointer, start: number, size: number, type: string, params: string): Success
  dm_task_set_ro(task: Pointer): Success
  dm_task_set_sector(task: Pointer, sector: number): Success
  dm_task_set_message(task: Pointer, message: string): Success
  dm_task_no_flush(task: Pointer): Success
  dm_task_skip_lockfs(task: Pointer): Success
  dm_task_no_open_count(task: Pointer): Success
  dm_task_query_inactive_table(task: Pointer): Success
  dm_task_enable_checks(task: Pointer): Success
  dm_task_retry_remove(task: Pointer): Success
  dm_task_deferred_remove(task: Pointer): Success
  dm_task_set_cookie(task: Pointer, cookie: [number], flags: number): Success
  dm_udev_set_sync_support(sync: number): void
  dm_udev_get_sync_support(): number
  dm_udev_complete(cookie: number): Success
  dm_udev_wait(cookie: number): Success
  dm_udev_wait_immediate(cookie: number, ready: [number]): Success
  dm_mknodes(name: string | null): Success
  dm_set_name_mangling_mode(mode: number): Success
}

const prototypes: Readonly<Record<keyof Functions, string>> = {
  dm_get_library_version: 'int dm_get_library_version(_Out_ uint8_t *version, size_t size)',
  dm_set_dev_dir: 'int dm_set_dev_dir(const char *directory)',
  dm_dir: 'const char *dm_dir()',
  dm_task_create: 'dm_task *dm_task_create(int type)',
  dm_task_destroy: 'void dm_task_destroy(dm_task *task)',
  dm_task_run: 'int dm_task_run(dm_task *task)',
  dm_task_get_errno: 'int dm_task_get_errno(dm_task *task)',
  dm_task_get_info: 'int dm_task_get_info(dm_task *task, _Out_ dm_info *info)',
  dm_task_get_name: 'const char *dm_task_get_name(dm_task *task)',
  dm_task_get_uuid: 'const char *dm_task_get_uuid(dm_task *task)',
  dm_task_get_driver_version: 'int dm_task_get_driver_version(dm_task *task, _Out_ uint8_t *version, size_t size)',
  dm_task_get_names: 'void *dm_task_get_names(dm_task *task)',
  dm_task_get_versions: 'void *dm_task_get_versions(dm_task *task)',
  dm_task_get_deps: 'void *dm_task_get_deps(dm_task *task)',
  dm_task_get_message_response: 'const char *dm_task_get_message_response(dm_task *task)',
  dm_get_next_target:
    'void *dm_get_next_target(dm_task *task, void *next, _Out_ uint64_t *start, _Out_ uint64_t *length, _Out_ const char **type, _Out_ const char **params)',
  dm_task_set_name: 'int dm_task_set_name(dm_task *task, const char *name)',
  dm_task_set_uuid: 'int dm_task_set_uuid(dm_task *task, const char *uuid)',
  dm_task_set_major_minor: 'int dm_task_set_major_minor(dm_task *task, int major, int minor, int fallback)',
  dm_task_set_newname: 'int dm_task_set_newname(dm_task *task, const char *name)',
  dm_task_add_target:
    'int dm_task_add_target(dm_task *task, uint64_t start, uint64_t size, const char *type, const char *params)',
  dm_task_set_ro: 'int dm_task_set_ro(dm_task *task)',
  dm_task_set_sector: 'int dm_task_set_sector(dm_task *task, uint64_t sector)',
  dm_task_set_message: 'int dm_task_set_message(dm_task *task, const char *message)',
  dm_task_no_flush: 'int dm_task_no_flush(dm_task *task)',
  dm_task_skip_lockfs: 'int dm_task_skip_lockfs(dm_task *task)',
  dm_task_no_open_count: 'int dm_task_no_open_count(dm_task *task)',
  dm_task_query_inactive_table: 'int dm_task_query_inactive_table(dm_task *task)',
  dm_task_enable_checks: 'int dm_task_enable_checks(dm_task *task)',
  dm_task_retry_remove: 'int dm_task_retry_remove(dm_task *task)',
  dm_task_deferred_remove: 'int dm_task_deferred_remove(dm_task *task)',
  dm_task_set_cookie: 'int dm_task_set_cookie(dm_task *task, _Inout_ uint32_t *cookie, uint16_t flags)',
  dm_udev_set_sync_support: 'void dm_udev_set_sync_support(int sync)',
  dm_udev_get_sync_support: 'int dm_udev_get_sync_support()',
  dm_udev_complete: 'int dm_udev_complete(uint32_t cookie)',
  dm_udev_wait: 'int dm_udev_wait(uint32_t cookie)',
  dm_udev_wait_immediate: 'int dm_udev_wait_immediate(uint32_t cookie, _Out_ int *ready)',
  dm_mknodes: 'int dm_mknodes(const char *name)',
  dm_set_name_mangling_mode: 'int dm_set_name_mangling_mode(int mode)'
}

/** Ends a call that the kernel or the library refused. Turned into CallFailed once the library's output is at hand. */
class Refused extends Error {
  readonly reason: CallFailure['reason']
  readonly errno: number

  constructor(reason: CallFailure['reason'], errno: number) {
    super(reason)
    this.reason = reason
    this.errno = errno
  }
}

/** Which nodes must exist, and which must not, under /dev/mapper after a change, by device name. */
interface NodeChange {
  readonly present?: string
  readonly absent?: string
}

export class Libdevmapper {
  readonly #functions: Functions
  readonly #configuration: HelperConfiguration
  readonly #capture: StandardErrorCapture
  #controlUsable = false
  #notices: string[] = []

  /** Throws CallFailed (`library`) when libdevmapper is not there or too old. */
  constructor(configuration: HelperConfiguration) {
    this.#configuration = configuration
    this.#functions = load(configuration.libraryPath === undefined ? usualNames : [configuration.libraryPath])
    this.#capture = new StandardErrorCapture()
    this.#functions.dm_set_name_mangling_mode(mangling.automatic)
    if (this.#functions.dm_set_dev_dir(configuration.devDirectory) === 0) {
      throw new CallFailed({
        reason: 'control',
        errno: 0,
        said: [`${configuration.devDirectory} cannot be used as /dev`]
      })
    }
  }

  /** Runs one call and returns its result (as in CallResults) and notices. Throws CallFailed. */
  perform(call: Call): { result: unknown; notices: string[] } {
    this.#notices = []
    if (!this.#controlUsable) {
      checkControl(this.#configuration.devDirectory)
      this.#controlUsable = true
    }
    const { result: outcome, lines } = this.#capture.during(() => {
      try {
        return { result: this.#perform(call) }
      } catch (error) {
        if (error instanceof Refused) return { refused: error }
        throw error
      }
    })
    if (outcome.refused !== undefined) throw new CallFailed(describeRefusal(outcome.refused, lines))
    return { result: outcome.result, notices: [...lines, ...this.#notices] }
  }

  #perform(call: Call): unknown {
    switch (call.call) {
      case 'versions':
        return this.#versions()
      case 'targets':
        return this.#targets()
      case 'list':
        return this.#list()
      case 'info':
        return this.#withTask('info', call.device, (task) => this.#run(task, call.device).info)
      case 'deps':
        return this.#deps(call.device)
      case 'table':
        return this.#rows('table', call.device, (task) => {
          if (call.inactive) this.#must(task, this.#functions.dm_task_query_inactive_table(task))
        })
      case 'status':
        return this.#rows('status', call.device, (task) => {
          if (!call.flush) this.#must(task, this.#functions.dm_task_no_flush(task))
        })
      case 'message':
        return this.#withTask('message', call.device, (task) => {
          this.#must(task, this.#functions.dm_task_set_sector(task, call.sector))
          this.#must(task, this.#functions.dm_task_set_message(task, call.text))
          this.#run(task, call.device)
          return this.#functions.dm_task_get_message_response(task) ?? undefined
        })
      case 'create':
        return this.#create(call)
      case 'reload':
        return this.#reload(call)
      case 'clear':
        return this.#withTask('clear', call.device, (task) => this.#run(task, call.device).info)
      case 'suspend':
        return this.#withTask('suspend', call.device, (task) => {
          this.#suspendOptions(task, call)
          // A flush into a suspended device below gets stuck: the library checks, and warns.
          if (call.flush) this.#must(task, this.#functions.dm_task_enable_checks(task))
          return this.#run(task, call.device).info
        })
      case 'resume':
        return this.#resume(call)
      case 'rename':
        return this.#rename(call.device, call.newName)
      case 'remove':
        return this.#remove(call.device, call)
      case 'nodes':
        return this.#makeNodes(call.device)
    }
  }

  #versions(): { library: string; driver: string } {
    const library = Buffer.alloc(64)
    this.#functions.dm_get_library_version(library, library.length)
    return this.#withTask('version', undefined, (task) => {
      this.#run(task)
      const driver = Buffer.alloc(64)
      this.#must(task, this.#functions.dm_task_get_driver_version(task, driver, driver.length))
      return { library: text(library), driver: text(driver) }
    })
  }

  #targets(): TargetVersion[] {
    return this.#withTask('listVersions', undefined, (task) => {
      this.#run(task)
      return chain(this.#functions.dm_task_get_versions(task), dmVersions, (entry, name) => ({
        name,
        version: [...(entry.version as Uint32Array)] as [number, number, number]
      }))
    })
  }

  #list(): ListedDevice[] {
    return this.#withTask('list', undefined, (task) => {
      this.#run(task)
      const entries = chain(this.#functions.dm_task_get_names(task), dmNames, (entry, name) => ({
        name,
        dev: exact(entry.dev as number | bigint)
      }))
      // Without any device there is still one entry, with number 0.
      return entries.filter(({ dev }) => dev !== 0).map(({ name, dev }) => ({ name, ...decodeDeviceNumber(dev) }))
    })
  }

  #deps(device: DeviceReference): DeviceNumber[] {
    return this.#withTask('deps', device, (task) => {
      this.#run(task, device)
      const deps = this.#functions.dm_task_get_deps(task)
      if (deps === null) return []
      const { count } = koffi.decode(deps, dmDeps) as { count: number }
      const first = koffi.offsetof(dmDeps, 'device')
      const numbers = Array.from(
        { length: count },
        (_, index) => koffi.decode(deps, first + 8 * index, 'uint64_t') as number
      )
      return numbers.map((number) => decodeDeviceNumber(exact(number)))
    })
  }

  #rows(type: 'table' | 'status', device: DeviceReference, prepare: (task: Pointer) => void): TableRow[] {
    return this.#withTask(type, device, (task) => {
      prepare(task)
      // Counting the openers would open the block device, which a status does not need.
      this.#must(task, this.#functions.dm_task_no_open_count(task))
      // For the library, the status of a missing device is no error.
      if (this.#run(task, device).info === undefined) throw new Refused('missing', constants.errno.ENXIO)
      const rows: TableRow[] = []
      let next: Pointer | null = null
      do {
        const [start, length]: [[number], [number]] = [[0], [0]]
        const [targetType, params]: [[string | null], [string | null]] = [[null], [null]]
        next = this.#functions.dm_get_next_target(task, next, start, length, targetType, params)
        if (targetType[0] !== null) {
          rows.push({
            startSector: exact(start[0]),
            lengthSectors: exact(length[0]),
            targetType: targetType[0],
            // Most targets end their status with a space.
            params: (params[0] ?? '').trimEnd()
          })
        }
      } while (next !== null)
      return rows
    })
  }

  /**
   * Create, load and resume, each a call of its own: the library's way of doing all three at once loses the error
   * number.
   */
  #create({ device, uuid, table, readOnly }: Extract<Call, { call: 'create' }>): DeviceInfo {
    const created = this.#withTask('create', device, (task) => {
      if (uuid !== undefined) this.#must(task, this.#functions.dm_task_set_uuid(task, uuid))
      return known(this.#run(task, device).info)
    })
    if (table === undefined) return created
    try {
      this.#reload({ device, table, readOnly })
      return this.#resume({ device, lockfs: true, flush: true })
    } catch (error) {
      try {
        this.#remove(device, { deferred: false, retry: true })
      } catch (leftBehind) {
        // The library's output about it is reported with the first failure, which is the one that matters.
        if (!(leftBehind instanceof Refused)) throw leftBehind
      }
      throw error
    }
  }

  #reload({ device, table, readOnly }: Omit<Extract<Call, { call: 'reload' }>, 'call'>): DeviceInfo {
    return this.#withTask('reload', device, (task) => {
      for (const { startSector, lengthSectors, targetType, params } of table) {
        this.#must(task, this.#functions.dm_task_add_target(task, startSector, lengthSectors, targetType, params))
      }
      if (readOnly) this.#must(task, this.#functions.dm_task_set_ro(task))
      return known(this.#run(task, device).info)
    })
  }

  #resume({ device, lockfs, flush }: Omit<Extract<Call, { call: 'resume' }>, 'call'>): DeviceInfo {
    return this.#withTask('resume', device, (task) => {
      this.#suspendOptions(task, { lockfs, flush })
      return known(this.#runChangingNodes(task, device, ({ name }) => ({ present: name })).info)
    })
  }

  #rename(device: DeviceReference, newName: string): undefined {
    // The kernel renames by name only.
    const oldName = this.#withTask('info', device, (task) => known(this.#run(task, device).info)).name
    this.#withTask('rename', oldName, (task) => {
      this.#must(task, this.#functions.dm_task_set_newname(task, newName))
      this.#runChangingNodes(task, oldName, () => ({ absent: oldName, present: newName }))
    })
  }

  #remove(device: DeviceReference, options: { deferred: boolean; retry: boolean }): 'removed' | 'deferred' {
    return this.#withTask('remove', device, (task) => {
      if (options.deferred) this.#must(task, this.#functions.dm_task_deferred_remove(task))
      if (options.retry) this.#must(task, this.#functions.dm_task_retry_remove(task))
      const gone = (raw: DmInfo) => raw.deferred_remove === 0
      const { raw } = this.#runChangingNodes(task, device, ({ name, raw }) => (gone(raw) ? { absent: name } : {}))
      return gone(raw) ? 'removed' : 'deferred'
    })
  }

  #withTask<T>(type: keyof typeof taskTypes, device: DeviceReference | undefined, use: (task: Pointer) => T): T {
    const task = this.#functions.dm_task_create(taskTypes[type])
    // The library has asked the kernel for its version before, and does not ask twice.
    if (task === null) throw new Refused('control', 0)
    try {
      if (device !== undefined) this.#must(task, this.#address(task, device))
      return use(task)
    } finally {
      this.#functions.dm_task_destroy(task)
    }
  }

  #address(task: Pointer, device: DeviceReference): Success {
    if (typeof device === 'string') return this.#functions.dm_task_set_name(task, device)
    if ('uuid' in device) return this.#functions.dm_task_set_uuid(task, device.uuid)
    return this.#functions.dm_task_set_major_minor(task, device.major, device.minor, 0)
  }

  #suspendOptions(task: Pointer, { lockfs, flush }: { lockfs: boolean; flush: boolean }): void {
    if (!lockfs) this.#must(task, this.#functions.dm_task_skip_lockfs(task))
    if (!flush) this.#must(task, this.#functions.dm_task_no_flush(task))
  }

  #must(task: Pointer, success: Success): void {
    if (success === 0) throw new Refused('refused', this.#functions.dm_task_get_errno(task))
  }

  /**
   * Runs a task. The info is the device's after the call; undefined when it does not exist (to some calls a result, not
   * an error).
   */
  #run(task: Pointer, device?: DeviceReference): { info: DeviceInfo | undefined; raw: DmInfo; name: string } {
    if (this.#functions.dm_task_run(task) === 0) {
      const errno = this.#functions.dm_task_get_errno(task)
      if (errno === constants.errno.EACCES) throw new Refused('permission', errno)
      // ENXIO also means that a device in the table is missing, and 0 that the library gave up earlier: only a look
      // tells.
      const perhaps = errno === constants.errno.ENXIO || errno === 0
      if (perhaps && device !== undefined && !this.#exists(device)) throw new Refused('missing', constants.errno.ENXIO)
      throw new Refused('refused', errno)
    }
    const raw = {} as DmInfo
    this.#must(task, this.#functions.dm_task_get_info(task, raw))
    const name = this.#functions.dm_task_get_name(task) ?? ''
    if (raw.exists === 0) return { info: undefined, raw, name }
    const info: DeviceInfo = {
      name,
      uuid: this.#functions.dm_task_get_uuid(task) ?? '',
      major: raw.major,
      minor: raw.minor,
      suspended: raw.suspended !== 0,
      hasLiveTable: raw.live_table !== 0,
      hasInactiveTable: raw.inactive_table !== 0,
      openCount: raw.open_count,
      eventNumber: raw.event_nr,
      readOnly: raw.read_only !== 0,
      targetCount: raw.target_count,
      removeDeferred: raw.deferred_remove !== 0,
      internallySuspended: raw.internal_suspend !== 0
    }
    return { info, raw, name }
  }

  #exists(device: DeviceReference): boolean {
    return this.#withTask('info', device, (task) => this.#run(task).info !== undefined)
  }

  /** Runs a task that changes device nodes, and makes sure that they change. */
  #runChangingNodes(
    task: Pointer,
    device: DeviceReference,
    changed: (done: { name: string; raw: DmInfo }) => NodeChange
  ): { info: DeviceInfo | undefined; raw: DmInfo } {
    const functions = this.#functions
    let keeper = this.#configuration.nodeKeeper ?? nodeKeeper(surroundings(this.#configuration.devDirectory))
    functions.dm_udev_set_sync_support(keeper === 'synchronised' ? 1 : 0)
    // The library has its own opinion (formed once) on whether udev runs.
    if (keeper === 'synchronised' && functions.dm_udev_get_sync_support() === 0) keeper = 'unsynchronised'
    const cookie: [number] = [0]
    if (functions.dm_task_set_cookie(task, cookie, udevFlagsFor(keeper)) === 0) {
      // No semaphore is available: as if udevd could not see ours.
      keeper = 'unsynchronised'
      functions.dm_udev_set_sync_support(0)
      this.#must(task, functions.dm_task_set_cookie(task, cookie, udevFlagsFor(keeper)))
    }
    let done: { info: DeviceInfo | undefined; raw: DmInfo; name: string }
    try {
      done = this.#run(task, device)
    } finally {
      // Also after a failure: the semaphore must go, and the library must make or drop the nodes that it has queued.
      this.#awaitUdev(cookie[0])
    }
    this.#settleNodes(changed(done), keeper === 'unsynchronised' ? this.#configuration.udevTimeoutMs : 0)
    return done
  }

  /** Waits until udevd is done with the events of a cookie (0: none), and lets the library make its own nodes. */
  #awaitUdev(cookie: number): void {
    const functions = this.#functions
    const deadline = performance.now() + this.#configuration.udevTimeoutMs
    const ready: [number] = [1]
    for (let pauseMs = 1; cookie !== 0; pauseMs = Math.min(2 * pauseMs, 20)) {
      if (functions.dm_udev_wait_immediate(cookie, ready) === 0 || ready[0] !== 0) return
      if (performance.now() > deadline) break
      pause(pauseMs)
    }
    if (cookie !== 0) {
      this.#notices.push(`udev has not confirmed within ${this.#configuration.udevTimeoutMs} ms; going on without it`)
      // Sends what udevd should have sent, so that the wait below ends at once and removes the semaphore.
      functions.dm_udev_complete(cookie)
    }
    functions.dm_udev_wait(cookie)
  }

  /** Makes the node of a device, removes the node of a missing one; all of them without a name. */
  #makeNodes(name: string | undefined): undefined {
    // Only here the library takes the unmangled name for the file's, so it gets the mangled one.
    this.#functions.dm_set_name_mangling_mode(mangling.none)
    const done = this.#functions.dm_mknodes(name === undefined ? null : nodeName(name))
    this.#functions.dm_set_name_mangling_mode(mangling.automatic)
    this.#functions.dm_udev_wait(0)
    if (done === 0) throw new Refused('refused', 0)
  }

  #settleNodes({ present, absent }: NodeChange, patienceMs: number): void {
    const there = (name: string) =>
      lstatSync(join(this.#functions.dm_dir(), nodeName(name)), { throwIfNoEntry: false }) !== undefined
    const settled = () => (present === undefined || there(present)) && (absent === undefined || !there(absent))
    const deadline = performance.now() + patienceMs
    for (let pauseMs = 1; !settled() && performance.now() < deadline; pauseMs = Math.min(2 * pauseMs, 20))
      pause(pauseMs)
    if (settled()) return
    for (const name of [absent, present]) {
      if (name !== undefined) this.#makeNodes(name)
    }
    if (!settled())
      this.#notices.push(
        `the device nodes of ${[absent, present].filter(Boolean).join(' and ')} are not as they should be`
      )
  }
}

function load(names: readonly string[]): Functions {
  const missing = (said: string) => new CallFailed({ reason: 'library', errno: 0, said: [said] })
  let library: ReturnType<typeof koffi.load> | undefined
  let why = ''
  for (const name of names) {
    try {
      library = koffi.load(name)
      break
    } catch (error) {
      why = `${name}: ${(error as Error).message}`
    }
  }
  if (library === undefined) throw missing(why)
  const bind = (name: string, prototype: string): unknown => {
    try {
      return library.func(prototype)
    } catch {
      throw missing(`${name} is missing in this version`)
    }
  }
  return Object.fromEntries(
    Object.entries(prototypes).map(([name, prototype]) => [name, bind(name, prototype)])
  ) as unknown as Functions
}

/**
 * Opens the control node, as the library would. The library must not meet an unusable control node: it removes one that
 * is no device, makes one that leads nowhere, and after one failure it fails for ever.
 */
function checkControl(devDirectory: string): void {
  const path = join(devDirectory, 'mapper', 'control')
  const failed = (reason: CallFailure['reason'], errno: number, said: string) =>
    new CallFailed({ reason, errno, said: [said] })
  try {
    const found = statSync(path)
    const { major, minor } = decodeDeviceNumber(found.rdev)
    if (!found.isCharacterDevice() || major !== controlNumber.major || minor !== controlNumber.minor) {
      throw failed('control', constants.errno.ENODEV, `${path} is something else`)
    }
    closeSync(openSync(path, 'r+'))
  } catch (error) {
    if (error instanceof CallFailed) throw error
    const { code, errno = 0 } = error as NodeJS.ErrnoException
    if (code === 'EACCES' || code === 'EPERM') throw failed('permission', -errno, `${path} cannot be opened`)
    // The driver is there and only its node is not: the library makes it.
    if (code === 'ENOENT' && /^\s*\d+ device-mapper$/m.test(readFileSync('/proc/misc', 'utf8'))) return
    throw failed('control', -errno, code === 'ENOENT' ? `${path} does not exist` : `${path} leads to no device-mapper`)
  }
}

function describeRefusal({ reason, errno }: Refused, lines: readonly string[]): CallFailure {
  // Without CAP_SYS_ADMIN the control node may open, and then already the first question is refused.
  if (reason === 'control' && lines.some((line) => line.endsWith('Permission denied'))) {
    return { reason: 'permission', errno: constants.errno.EACCES, said: lines }
  }
  return { reason, errno, said: lines }
}

function udevFlagsFor(keeper: NodeKeeper): number {
  if (keeper === 'library') return udevFlags.disableDmRules | udevFlags.disableSubsystemRules
  return udevFlags.disableLibraryFallback
}

function known(info: DeviceInfo | undefined): DeviceInfo {
  if (info === undefined) throw new Refused('missing', constants.errno.ENXIO)
  return info
}

function* links(
  first: Pointer | null,
  type: ReturnType<typeof koffi.struct>
): Iterable<{ at: Pointer; entry: { next: number } }> {
  if (first === null) return
  for (let at = first; ;) {
    const entry = koffi.decode(at, type) as { next: number }
    yield { at, entry }
    if (entry.next === 0) return
    at += BigInt(entry.next)
  }
}

function chain<T>(
  first: Pointer | null,
  type: ReturnType<typeof koffi.struct>,
  read: (entry: Record<string, unknown>, name: string) => T
): T[] {
  const name = BigInt(koffi.offsetof(type, 'name'))
  return [...links(first, type)].map(({ at, entry }) =>
    read(entry as Record<string, unknown>, koffi.decode.string(at + name))
  )
}

/** koffi returns a BigInt if a double does not suffice. Nothing real is that large, so it is refused, not rounded. */
function exact(value: number | bigint): number {
  if (typeof value === 'bigint') throw new Refused('refused', constants.errno.EOVERFLOW)
  return value
}

function text(bytes: Buffer): string {
  return bytes.toString('utf8', 0, bytes.indexOf(0))
}

function pause(ms: number): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms)
}
