/** `deltamapper conformance` as a person and as a CI use it: what it prints, how it ends, what it keeps. */
import { once } from 'node:events'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import type { Report } from '../../src/conformance/conformance.ts'
import { type Mock, startMock } from '../../src/mock/mock.ts'
import { complaint, outcome, runCommand, startCommand } from '../cli/run-command.ts'
import { testFolder } from '../support/test-folder.ts'

const folder = testFolder(test)
/** Rules that are judged soon. */
const quick = ['--rule', '1', '4', '10', '33', '34']

async function mockOf(t: ExecutionContext, scenario: string): Promise<{ mock: Mock; flags: string[] }> {
  const mock = await startMock({ scenario })
  t.teardown(() => mock.stop())
  const [{ volume }] = mock.snapshots
  const ids = (own: boolean) => mock.snapshots.filter((each) => (each.volume === volume) === own).map(({ id }) => id)
  const flags = ['--endpoint', mock.endpoint, '--snapshot', ...ids(true), '--other-snapshot', ...ids(false)]
  return { mock, flags }
}

const report = (text: string) => JSON.parse(text) as Report

test('an honest driver passes, and at least 20 rules are judged', async (t) => {
  const { flags } = await mockOf(t, 'honest')
  const { status, stdout, stderr } = await runCommand(['conformance', ...flags, '-o', 'json'])
  t.is(status, 0, stderr)
  const { driver, rules, summary } = report(stdout)
  t.deepEqual(driver, { name: 'mock.deltamapper.io', version: '1' })
  for (const rule of rules) t.deepEqual(Object.keys(rule), ['number', 'level', 'outcome', 'title', 'source', 'seen'])
  t.true(rules.filter(({ outcome }) => outcome !== 'skip').length >= 20)
  t.is(summary.fail, 0)
  for (const { outcome, seen } of rules) if (outcome === 'skip') t.not(seen, '')
})

test('a broken "must" is exit status 1 and quotes what was sent; the baseline knows it; the record tells it again', async (t) => {
  const { flags } = await mockOf(t, 'unsorted')
  const record = join(folder, 'run.ndjson')
  const failed = await runCommand(['conformance', ...flags, ...quick, '-o', 'json', '--record', record])
  t.is(failed.status, 1)
  const rule = report(failed.stdout).rules.find(({ number }) => number === 10)
  t.is(rule?.outcome, 'fail')
  t.regex(rule?.seen ?? '', /message \d+, tuple \d+: \{byte_offset: \d+, size_bytes: \d+\} begins before \d+/)
  t.false((await readFile(record, 'utf8')).includes('conformance-secret'), 'secrets are not kept')

  const again = await runCommand(['conformance', '--replay', record, ...quick, '-o', 'json'])
  t.is(again.stdout, failed.stdout)
  t.is(again.status, 1)

  const baseline = join(folder, 'known.json')
  await writeFile(baseline, failed.stdout)
  const known = await runCommand(['conformance', '--replay', record, ...quick, '-o', 'json', '--baseline', baseline])
  t.is(known.status, 0)
  t.is(report(known.stdout).summary.known, 1)
})

test('JUnit, TAP and the table say the same', async (t) => {
  const { flags } = await mockOf(t, 'negative-offset-served')
  const record = join(folder, 'formats.ndjson')
  await runCommand(['conformance', ...flags, ...quick, '--record', record])
  const shown = async (format: string) =>
    (await runCommand(['conformance', '--replay', record, ...quick, '-o', format])).stdout
  const junit = await shown('junit')
  t.regex(junit, /^<\?xml version="1.0"/)
  t.regex(junit, /<testsuites tests="5" failures="1"/)
  t.regex(junit, /<failure message="GetMetadataAllocated\(&#34;/)
  const tap = await shown('tap')
  t.regex(tap, /^TAP version 14\n1\.\./)
  t.regex(tap, /^not ok \d+ - a starting offset below 0/m)
  const table = await shown('table')
  t.regex(table, /^fail +33 +must/m)
  t.regex(table, /mock\.deltamapper\.io 1: 4 pass, 1 fail, 0 warn, 0 skip\n$/)
})

test('a command line that is wrong is exit status 2', async (t) => {
  for (const [args, words] of [
    [['--snapshot', 'a'], /no driver was named/],
    [['--endpoint', 'unix:///x.sock'], /no snapshot was named/],
    [['--endpoint', 'tcp://127.0.0.1:1', '--snapshot', 'a'], /is no unix socket/],
    [['--endpoint', 'unix:///x.sock', '--snapshot', 'a', '--rule', '99'], /there is no rule 99/],
    [['--endpoint', 'unix:///x.sock', '--snapshot', 'a', '--rule', 'x'], /number of a rule/],
    [['--endpoint', 'unix:///x.sock', '--snapshot', 'a', '--baseline', '/nowhere'], /is no report/],
    [['--endpoint', 'unix:///x.sock', '--snapshot', 'a', '-o', 'xml'], /xml/]
  ] as const) {
    const result = await runCommand(['conformance', ...args])
    t.is(result.status, 2, args.join(' '))
    t.regex(complaint(result), words)
  }
})

test('where nobody answers, the verdict says so', async (t) => {
  const { status, stdout } = await runCommand([
    'conformance',
    '--endpoint',
    `unix://${folder}/none.sock`,
    '--snapshot',
    'a',
    'b',
    '-o',
    'json'
  ])
  t.is(status, 1)
  t.regex(report(stdout).rules.find(({ number }) => number === 5)?.seen ?? '', /ENOENT/)
})

test('Ctrl-C ends it', async (t) => {
  const { mock, flags } = await mockOf(t, 'hangs')
  const child = startCommand(['conformance', ...flags])
  const [ended] = await Promise.all([outcome(child), interrupt()])
  t.is(ended.status, 130)
  t.regex(complaint(ended), /interrupted/)
  async function interrupt() {
    while (mock.connections === 0) await new Promise((resolve) => setTimeout(resolve, 20))
    child.kill('SIGINT')
    await once(child, 'exit')
  }
})
