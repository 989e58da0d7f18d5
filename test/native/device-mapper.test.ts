/**
 * The helper process's life, on any machine: no call here needs a kernel with device-mapper, only one that answers, one that does
 * not, and one that ends. A call that hangs is one whose library is a FIFO: the helper blocks in the open(2) or read(2) of it. One
 * that hangs in device-mapper itself, uninterruptibly, is tested in the kernel lab (test/kernel/device-mapper.test.ts).
 */
import { execFile, execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, constants, existsSync, mkdtempSync, openSync, readFileSync, renameSync, rmSync } from 'node:fs'
import { mkdirSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import test, { type ExecutionContext } from 'ava'
import { DeltamapperError } from '../../src/errors.ts'
import { DeviceMapper, DeviceMapperError, type DeviceMapperOptions } from '../../native/device-mapper.ts'

/** A /dev in which the control node is a plain file: every call is answered quickly, with DM_CONTROL_MISSING. */
const devDirectory = mkdtempSync(join(tmpdir(), 'deltamapper-helper-'))
mkdirSync(join(devDirectory, 'mapper'))
writeFileSync(join(devDirectory, 'mapper', 'control'), '')
test.after.always(() => rmSync(devDirectory, { recursive: true, force: true }))

function open(t: ExecutionContext, options: DeviceMapperOptions = {}): DeviceMapper {
  const deviceMapper = new DeviceMapper({ devDirectory, ...options })
  t.teardown(() => deviceMapper.close())
  return deviceMapper
}

let fifos = 0

/** A library that cannot be loaded until it is released, and then is none. */
class HangingLibrary {
  readonly path = join(devDirectory, `hanging-${fifos++}`)
  #writer: number | undefined

  constructor() {
    execFileSync('mkfifo', [this.path])
  }

  /** Resolves when a helper hangs in it. Whoever loads the path from now on finds nothing there. */
  async held(): Promise<void> {
    // Opening the writing end without waiting succeeds once someone is at the reading end; that one now waits for a byte.
    await until(() => {
      try {
        this.#writer = openSync(this.path, constants.O_WRONLY | constants.O_NONBLOCK)
        return true
      } catch {
        return false
      }
    }, 'a helper loads the library')
    renameSync(this.path, `${this.path}.held`)
  }

  release(): void {
    if (this.#writer !== undefined) closeSync(this.#writer)
  }
}

async function failureOf(promise: Promise<unknown>): Promise<DeviceMapperError> {
  const error: unknown = await promise.then(
    () => new Error('it succeeded'),
    (thrown: unknown) => thrown
  )
  if (error instanceof DeviceMapperError) return error
  throw error
}

function isAlive(pid: number): boolean {
  if (!existsSync(`/proc/${pid}/status`)) return false
  return !/^State:\s+[ZX]/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'))
}

async function until(condition: () => boolean, what: string): Promise<void> {
  for (const deadline = performance.now() + 300_000; !condition(); await sleep(20)) {
    if (performance.now() > deadline) throw new Error(`still not so after 20 s: ${what}`)
  }
}

test('a missing library says what to install', async (t) => {
  const error = await failureOf(open(t, { libraryPath: 'libnowhere.so.9' }).list())
  t.is(error.code, 'DM_LIBDEVMAPPER_MISSING')
  t.is(error.status, 'FAILED_PRECONDITION')
  t.regex(error.message, /libnowhere\.so\.9/)
  t.regex(error.remedy, /libdevmapper1\.02\.1 .*device-mapper-libs/)
})

test('a missing control node says what to load and mount', async (t) => {
  const error = await failureOf(open(t).status('pool'))
  t.like(error, { code: 'DM_CONTROL_MISSING', call: 'status', device: 'pool' })
  t.regex(error.message, /mapper\/control is something else/)
  t.regex(error.remedy, /modprobe dm_mod.*mount/)
})

test('impossible arguments are refused without a helper', async (t) => {
  const deviceMapper = open(t)
  const row = { startSector: 0, lengthSectors: 8, targetType: 'zero', params: '' }
  const refused = { instanceOf: DeltamapperError, code: 'DM_ARGUMENT_INVALID' }
  for (const call of [
    () => deviceMapper.info('../control'),
    () => deviceMapper.status({ uuid: '' }),
    () => deviceMapper.message('pool', ''),
    () => deviceMapper.message('pool', 'delete 1\0'),
    () => deviceMapper.create('a/b'),
    () => deviceMapper.create('a', { table: [{ ...row, startSector: 8 }] }),
    () => deviceMapper.reload('a', []),
    () => deviceMapper.rename('a', '..'),
    () => deviceMapper.makeNodes('control')
  ]) {
    await t.throwsAsync(call, refused)
  }
  t.deepEqual(deviceMapper.helpers.pids, [])
})

test('a helper that was killed is replaced; the call it was at says so', async (t) => {
  const library = new HangingLibrary()
  const deviceMapper = open(t, { libraryPath: library.path })
  const call = failureOf(deviceMapper.status('pool'))
  await library.held()
  const [pid = 0] = deviceMapper.helpers.pids
  process.kill(pid, 'SIGKILL')
  const error = await call
  t.is(error.code, 'DM_CALL_STUCK')
  t.regex(error.message, /helper process ended during status of pool: SIGKILL/)
  t.is((await failureOf(deviceMapper.status('pool'))).code, 'DM_LIBDEVMAPPER_MISSING')
  t.false(deviceMapper.helpers.pids.includes(pid))
})

test('a call that does not come back is reported when its time is up, and its helper is replaced', async (t) => {
  const library = new HangingLibrary()
  const deviceMapper = open(t, { libraryPath: library.path })
  const call = failureOf(deviceMapper.message('pool', 'reserve_metadata_snap', { deadlineMs: 400 }))
  await library.held()
  const [pid = 0] = deviceMapper.helpers.pids
  const error = await call
  t.is(error.code, 'DM_CALL_STUCK')
  t.is(error.status, 'UNAVAILABLE')
  t.regex(
    error.message,
    new RegExp(`"reserve_metadata_snap" to pool has not come back .* 0\\.4 s; its process \\(${pid}\\)`)
  )
  await until(() => !isAlive(pid), 'the stuck helper is gone')
  await until(() => deviceMapper.helpers.givenUp.length === 0, 'and no longer counted')
  t.is((await failureOf(deviceMapper.status('pool'))).code, 'DM_LIBDEVMAPPER_MISSING')
})

test('queries that are asked side by side go to one helper together, and each is answered for itself', async (t) => {
  const library = new HangingLibrary()
  const deviceMapper = open(t, { libraryPath: library.path, deadlineMs: 400 })
  const { major, minor } = { major: 253, minor: 7 }
  const asked = [deviceMapper.info('a'), deviceMapper.table({ uuid: 'b' }), deviceMapper.deps({ major, minor })]
  const queries = asked.map(async (each) => failureOf(each))
  await library.held()
  const [pid = 0] = deviceMapper.helpers.pids
  const errors = await Promise.all(queries)
  t.deepEqual(
    errors.map(({ code, call, device }) => [code, call, device]),
    [
      ['DM_CALL_STUCK', 'info', 'a'],
      ['DM_CALL_STUCK', 'table', 'UUID b'],
      ['DM_CALL_STUCK', 'deps', '253:7']
    ]
  )
  for (const { message } of errors) t.regex(message, new RegExp(`process \\(${pid}\\)`))
})

test('a slow call holds nobody up: those behind it go on in a second helper, in order', async (t) => {
  const library = new HangingLibrary()
  const deviceMapper = open(t, { libraryPath: library.path, deadlineMs: 60_000, patienceMs: 50 })
  const slow = failureOf(deviceMapper.status('slow'))
  await library.held()
  const [pid = 0] = deviceMapper.helpers.pids
  const order: string[] = []
  const others = ['one', 'two', 'three'].map(async (name) => {
    const { code } = await failureOf(deviceMapper.info(name))
    order.push(name)
    return code
  })
  t.deepEqual(await Promise.all(others), Array<string>(3).fill('DM_LIBDEVMAPPER_MISSING'))
  t.deepEqual(order, ['one', 'two', 'three'])
  t.true(isAlive(pid))
  t.true(deviceMapper.helpers.pids.includes(pid))
  library.release()
  t.is((await slow).code, 'DM_LIBDEVMAPPER_MISSING', 'the slow one has its answer all the same')
})

test('closing waits for the call at hand, refuses the rest and ends the helper', async (t) => {
  const library = new HangingLibrary()
  const deviceMapper = open(t, { libraryPath: library.path, patienceMs: 60_000 })
  const atHand = failureOf(deviceMapper.status('at-hand'))
  await library.held()
  const [pid = 0] = deviceMapper.helpers.pids
  const waiting = deviceMapper.status('waiting')
  let closed = false
  const closing = deviceMapper.close().then(() => (closed = true))
  await t.throwsAsync(waiting, { instanceOf: DeltamapperError, code: 'DM_SHUTTING_DOWN' })
  await t.throwsAsync(() => deviceMapper.list(), { instanceOf: DeltamapperError, code: 'DM_SHUTTING_DOWN' })
  t.false(closed)
  library.release()
  t.is((await atHand).code, 'DM_LIBDEVMAPPER_MISSING')
  await closing
  await until(() => !isAlive(pid), 'the helper is gone')
})

/** A program that makes one call, prints its helper's pid once there is one, and then what came of the call. */
function parentProgram(options: DeviceMapperOptions): string {
  return `
    import { DeviceMapper } from ${JSON.stringify(new URL('../../native/device-mapper.ts', import.meta.url).href)}
    const deviceMapper = new DeviceMapper(${JSON.stringify(options)})
    const call = deviceMapper.list().catch((error) => error.code)
    await new Promise(setImmediate)
    console.log(deviceMapper.helpers.pids[0])
    console.log(await call)`
}

for (const signal of ['SIGKILL', 'SIGTERM'] as const) {
  test(`a parent that ends by ${signal} takes its helper along, once the kernel lets that go`, async (t) => {
    const library = new HangingLibrary()
    const program = parentProgram({ devDirectory, libraryPath: library.path, deadlineMs: 60_000 })
    const parent = spawn(process.execPath, ['--input-type=module', '--eval', program], {
      stdio: ['ignore', 'pipe', 'inherit']
    })
    const [output] = (await once(parent.stdout, 'data')) as [Buffer]
    const helper = Number(output.toString())
    await library.held()
    t.true(isAlive(helper))
    parent.kill(signal)
    await once(parent, 'exit')
    library.release()
    await until(() => !isAlive(helper), 'the helper is gone')
  })
}

test('an idle helper does not keep its parent from ending', async (t) => {
  const program = parentProgram({ devDirectory })
  const parent = spawn(process.execPath, ['--input-type=module', '--eval', program], {
    stdio: ['ignore', 'pipe', 'inherit']
  })
  let output = ''
  parent.stdout.on('data', (chunk: Buffer) => (output += chunk.toString()))
  const [status] = (await once(parent, 'exit')) as [number]
  t.is(status, 0)
  t.regex(output, /^\d+\nDM_CONTROL_MISSING\n$/)
})

test('where descriptors have run out, no call hangs and no process dies of it', async (t) => {
  const module = JSON.stringify(new URL('../../native/device-mapper.ts', import.meta.url).href)
  const script = `
    import { closeSync, openSync } from 'node:fs'
    const { DeviceMapper } = await import(${module})
    const deviceMapper = new DeviceMapper({ devDirectory: ${JSON.stringify(devDirectory)} })
    const opened = []
    try { for (;;) opened.push(openSync('/dev/null')) } catch {}
    const errors = await Promise.all([deviceMapper.status('a'), deviceMapper.list()].map((each) => each.catch((error) => error)))
    for (const descriptor of opened) closeSync(descriptor)
    for (const { line, status } of errors) console.log(status + ' ' + line)
    console.log((await deviceMapper.list().catch((error) => error)).code)
    await deviceMapper.close()`
  const node = [process.execPath, '--input-type=module', '--eval', script]
  const { stdout } = await promisify(execFile)('bash', ['-c', 'ulimit -n 64; exec "$@"', 'bash', ...node])
  const [one = '', other = '', later] = stdout.split('\n')
  for (const line of [one, other]) {
    t.regex(line, /^UNAVAILABLE DM_SYSTEM_REFUSED: the helper process for .* could not be started .*EMFILE/)
    t.regex(line, /raise how many files this process may open/)
  }
  t.is(later, 'DM_CONTROL_MISSING')
})
