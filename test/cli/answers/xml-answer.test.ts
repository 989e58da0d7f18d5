/**
 * `delta --xml` and `allocated --xml` from outside: files and standard input, sizes given and found out, and everything that is no answer.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import { expectedAllocated, expectedDelta, fromStartingOffset } from '../../support/expected.ts'
import { testFolder } from '../../support/test-folder.ts'
import { parseThinDelta, parseThinDump } from '../../support/thin-tools.ts'
import { command, complaint, runCommand } from '../run-command.ts'
import { answerOf, withInput } from './xml-command.ts'

const folder = testFolder(test)
const fixture = (name: string) => fileURLToPath(new URL(`../../fixtures/xml/${name}.xml`, import.meta.url))
const [deltaFile, dumpFile] = [fixture('thin_delta-0.9.0'), fixture('thin_dump-0.9.0')]
const runs = parseThinDelta(readFileSync(deltaFile, 'utf8'), 1, 8)
const { devices } = parseThinDump(readFileSync(dumpFile, 'utf8'))
const blockSizeBytes = 65536

/** What thin_delta says the target maps, with no regard to where. */
const targetMappings = runs
  .filter(({ kind }) => kind !== 'left_only')
  .map(({ begin, length }) => ({ begin, length, dataBegin: 0, time: 0 }))
const end = Math.max(...runs.map(({ begin, length }) => begin + length)) * blockSizeBytes

test('delta: the same answer from a file, from standard input, of every version, plain and verbose', async (t) => {
  const expected = expectedDelta(runs, targetMappings, { blockSizeBytes, sizeBytes: end })
  t.true(expected.length > 10)
  for (const name of ['0.9.0', '0.9.0-verbose', '1.1.0', '1.1.0-verbose'].map((each) => `thin_delta-${each}`)) {
    const fromFile = await runCommand(['delta', '--xml', fixture(name), '-o', 'json'])
    t.deepEqual(answerOf(fromFile), { extents: expected, size: end }, name)
    const piped = await withInput(['delta', '1', '8', '--xml', '-', '-o', 'json'], readFileSync(fixture(name)))
    t.is(piped.stdout, fromFile.stdout)
    const sized = await withInput(
      ['delta', '--xml', '-', '--size', `${end}`, '-o', 'json'],
      readFileSync(fixture(name))
    )
    t.is(sized.stdout, fromFile.stdout)
  }
})

test('delta: sizes cut, a smaller base brings back what is the same, an offset leaves out what is before it', async (t) => {
  for (const [sizeBytes, baseSizeBytes] of [
    [100 * blockSizeBytes + 512, undefined],
    [end + 12_345_600, 40 * blockSizeBytes + 1],
    [end, 0]
  ] as const) {
    const sizes = [
      '--size',
      `${sizeBytes}`,
      ...(baseSizeBytes === undefined ? [] : ['--base-size', `${baseSizeBytes}`])
    ]
    const expected = expectedDelta(runs, targetMappings, { blockSizeBytes, sizeBytes, baseSizeBytes })
    const args = ['delta', '--xml', deltaFile, ...sizes, '-o', 'json']
    t.deepEqual(answerOf(await runCommand(args)), { extents: expected, size: sizeBytes })
    const offset = 33 * blockSizeBytes + 700
    const rest = fromStartingOffset(expected, offset, blockSizeBytes)
    t.deepEqual(answerOf(await runCommand([...args, '--starting-offset', `${offset}`])).extents, rest)
  }
})

test('delta: what the answer rests on is said on stderr', async (t) => {
  const { stderr } = await runCommand(['delta', '--xml', deltaFile])
  t.deepEqual(
    stderr
      .trimEnd()
      .split('\n')
      .map((line) => line.replace(deltaFile, 'FILE')),
    [
      'deltamapper: reading what thin_delta says of thin device 1 and thin device 8, from FILE, of a pool with 64 KiB blocks, pool time 15, transaction 19',
      `deltamapper: size of thin device 8: ${end} bytes (${(end / 2 ** 20).toFixed(1)} MiB), the end of the last range; --size says otherwise`,
      'deltamapper: size of base thin device 1: that of thin device 8; --base-size says otherwise'
    ]
  )
  const sick = await runCommand(['delta', '--xml', fixture('thin_delta-1.1.0-needs-check')])
  t.regex(sick.stderr, /transaction 20, which needs a check\n/)
  const roots = await runCommand(['delta', '--xml', fixture('thin_delta-1.1.0-roots')])
  t.regex(roots.stderr, /says of the tree below block [0-9]+ and the tree below block [0-9]+, from/)
})

test('delta: every output format', async (t) => {
  const { extents } = answerOf(await runCommand(['delta', '--xml', deltaFile, '-o', 'json']))
  const ndjson = await runCommand(['delta', '--xml', deltaFile, '-o', 'ndjson'])
  t.is(ndjson.stdout.trimEnd().split('\n').length, extents.length + 2)
  for (const format of ['table', 'map']) {
    const { status, stdout } = await runCommand(['delta', '--xml', deltaFile, '-o', format])
    t.is(status, 0)
    t.regex(stdout, new RegExp(`${extents.length} extents`))
    t.regex(stdout.trimEnd().split('\n').at(-1) ?? '', /complete/)
  }
})

test('allocated: one device of several, or the only one', async (t) => {
  const mappings = devices.get(8)?.mappings ?? []
  const expected = expectedAllocated(mappings, { blockSizeBytes })
  for (const version of ['0.9.0', '1.1.0']) {
    const file = fixture(`thin_dump-${version}`)
    const fromFile = await runCommand(['allocated', '8', '--xml', file, '-o', 'json'])
    t.deepEqual(answerOf(fromFile).extents, expected)
    t.regex(fromFile.stderr, /reading what thin_dump says, from .*\n.*size of 8: .* the end of its highest mapping/)
    const piped = await withInput(['allocated', '8', '--xml', '-', '-o', 'json'], readFileSync(file))
    t.is(piped.stdout, fromFile.stdout)
    const only = await runCommand(['allocated', '--xml', fixture(`thin_dump-${version}-one-device`), '-o', 'json'])
    t.deepEqual(answerOf(only), answerOf(fromFile))
  }
  const sizeBytes = 50 * blockSizeBytes + 512
  const cut = await runCommand(['allocated', '8', '--xml', dumpFile, '--size', `${sizeBytes}`, '-o', 'json'])
  t.deepEqual(answerOf(cut).extents, expectedAllocated(mappings, { blockSizeBytes, sizeBytes }))
})

const noAnswer: [what: string, args: string[], status: number, expected: RegExp][] = [
  ['dump for delta', ['delta', '--xml', dumpFile], 1, /this is what thin_dump prints.*\(DM_XML_INVALID\)/],
  ['delta for allocated', ['allocated', '--xml', deltaFile], 1, /this is what thin_delta prints.*\(DM_XML_INVALID\)/],
  [
    'era_dump for allocated',
    ['allocated', '--xml', fixture('era_dump-0.9.0-live')],
    1,
    /this is what era_dump prints.*\(DM_XML_INVALID\)/
  ],
  [
    'a dump without its mappings',
    ['allocated', '1', '--xml', fixture('thin_dump-1.1.0-skip-mappings')],
    1,
    /is said to map/
  ],
  ['no such file', ['delta', '--xml', '/nowhere.xml'], 1, /cannot read \/nowhere.xml: ENOENT.*\(DM_READ_FAILED\)/],
  ['a folder', ['delta', '--xml', '/'], 1, /cannot read \/: EISDIR.*\(DM_READ_FAILED\)/],
  ['nothing on standard input', ['delta', '--xml', '-'], 1, /standard input, line 1, column 1: it is empty/],
  [
    'several devices',
    ['allocated', '--xml', dumpFile],
    2,
    /has several thin devices: 0, 1, 2, .* and more; name one of them as TARGET/
  ],
  ['no such device', ['allocated', '99', '--xml', dumpFile], 1, /no thin device 99.*\(DM_DEVICE_NOT_FOUND\)/],
  ['no such device, with a size', ['allocated', '99', '--xml', dumpFile, '--size', '1GiB'], 1, /no thin device 99/],
  ['a name', ['allocated', 'demo/monday', '--xml', dumpFile], 2, /is no thin device id; with --xml/],
  [
    'another base',
    ['delta', '2', '8', '--xml', deltaFile],
    2,
    /BASE is 2, and .* compares thin device 1 with thin device 8/
  ],
  ['another target', ['delta', '1', '7', '--xml', deltaFile], 2, /TARGET is 7, and/],
  [
    'ids for roots',
    ['delta', '1', '8', '--xml', fixture('thin_delta-1.1.0-roots')],
    2,
    /BASE is 1, and .* the tree below block/
  ],
  ['the live root', ['delta', '--xml', deltaFile, '--live-root'], 2, /--live-root goes with --metadata only/],
  ['two sources', ['delta', '--xml', deltaFile, '--metadata', 'x'], 2, /cannot be used with option '--xml/],
  ['an endpoint too', ['delta', '--xml', deltaFile, '--endpoint', 'unix:///x'], 2, /cannot be used with option '--xml/],
  ['an offset beyond', ['delta', '--xml', deltaFile, '--starting-offset', '1TiB'], 1, /\(DM_OFFSET_OUT_OF_RANGE\)/],
  ['no TARGET', ['delta', '1', '--metadata', 'x'], 2, /missing required argument 'TARGET'.*\(DM_ARGUMENT_MISSING\)/]
]

for (const [what, args, status, expected] of noAnswer) {
  test(`no answer, and why: ${what}`, async (t) => {
    const result = await runCommand([...args, '-o', 'json'])
    t.is(result.status, status)
    t.regex(complaint(result), expected)
    t.throws(() => JSON.parse(result.stdout) as unknown)
  })
}

test('torn XML is no answer, with a size or without, and from wherever it comes', async (t) => {
  const content = readFileSync(deltaFile)
  for (const length of [200, 1500, content.toString().trimEnd().length - 1]) {
    const torn = join(folder, `torn-${length}.xml`)
    await writeFile(torn, content.subarray(0, length))
    for (const size of [[], ['--size', '1GiB']]) {
      for (const [format, complete] of [
        ['json', /\]\}/],
        ['ndjson', /complete/],
        ['table', /complete/],
        ['map', /complete/]
      ] as const) {
        if (format !== 'json' && length !== 1500) continue
        const args = ['delta', ...size, '-o', format, '--xml']
        for (const result of [
          await runCommand([...args, torn]),
          await withInput([...args, '-'], content.subarray(0, length))
        ]) {
          t.is(result.status, 1)
          t.regex(complaint(result), /line [0-9]+, column [0-9]+: it ends.*\(DM_XML_INVALID\)$/)
          t.notRegex(result.stdout, complete)
        }
      }
    }
  }
})

test('whoever waits for a writer can be interrupted, and can run out of time', async (t) => {
  const waiting = (...args: string[]) => {
    const child = spawn(process.execPath, [command, 'delta', '--xml', '-', ...args], {
      stdio: ['pipe', 'ignore', 'pipe']
    })
    let stderr = ''
    child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text))
    const ended = (once(child, 'close') as Promise<[number | null]>).then(([status]) => ({
      status,
      stdout: '',
      stderr
    }))
    return { child, ended }
  }
  const late = await waiting('--timeout', '0.2').ended
  t.is(late.status, 1)
  t.regex(complaint(late), /not complete after 0.2 seconds.*\(DM_DEADLINE_EXCEEDED\)/)
  const { child, ended } = waiting()
  child.stdin.write(readFileSync(deltaFile).subarray(0, 1000))
  // Until it says so, it may not be listening yet.
  await once(child.stderr, 'data')
  child.kill('SIGINT')
  const interrupted = await ended
  t.is(interrupted.status, 130)
  t.regex(complaint(interrupted), /interrupted/)
})
