/** Every file that somebody writes for us by hand: what is wrong in it is told by its line, and by the field that was probably meant. */
import { execFileSync } from 'node:child_process'
import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import { loadRecordedPool } from '../src/agent/answers/recorded-pool.ts'
import { loadConfig as loadAgentConfig } from '../src/agent/config.ts'
import { readContentConfig } from '../src/conformance/csi-storage.ts'
import { readHooks } from '../src/conformance/hooks.ts'
import { DeltamapperError } from '../src/errors.ts'
import { readIndex } from '../src/mock/driver/images.ts'
import { loadScenario } from '../src/mock/driver/scenario.ts'
import { loadConfig as loadRouterConfig } from '../src/router/config.ts'
import { testFolder } from './support/test-folder.ts'

const folder = testFolder(test)

/** Who reads a file, given its folder and name. */
const readers: Record<string, (at: string, name: string) => Promise<unknown>> = {
  'agent.yaml': (at, name) => loadAgentConfig({ configFile: join(at, name) }),
  'router.yaml': (at, name) => loadRouterConfig({ configFile: join(at, name) }),
  'pool.json': (at) => loadRecordedPool('p', at),
  'scenario.yaml': async (at, name) => loadScenario(join(at, name), 1),
  'hooks.yaml': (at, name) => readHooks(join(at, name)),
  'content.yaml': (at, name) => readContentConfig(join(at, name)),
  'snapshots.json': (at) => readIndex(at)
}

const pool = (rest: string, volume = '{ "name": "v" }') =>
  `{\n  "format": 1,\n  "data_block_size_bytes": 65536,\n  "volumes": [${volume}],\n${rest}\n}\n`
const hooks = 'create: a\nsnapshot: b\nrestore: c\ndelete_snapshot: d\n'

const cases: [keyof typeof readers, string, string, RegExp][] = [
  ['agent.yaml', 'a misspelt field', 'walkers: 2\nlistn: []\n', /"listn", is listen meant\? \(line 2\)/],
  [
    'router.yaml',
    'a misspelt field',
    'driverName: a.b\nstatic:\n  node: {}\n',
    /"node", is nodes meant\? \(static, line 3\)/
  ],
  ['router.yaml', 'a mode without quotes', 'driverName: a.b\nsocketMode: 0660\n', /socketMode, line 2\).*"0660"/],
  ['pool.json', 'a missing comma', '{\n  "format": 1\n  "volumes": []\n}', /line 3/],
  [
    'pool.json',
    'a text for a number',
    pool('  "snapshots": [{ "name": "s", "volume": "v", "thin_id": "1", "size_bytes": 1 }]'),
    /snapshots\[0\]\.thin_id, line 5\): write it without quotes, "?1/
  ],
  [
    'pool.json',
    'a field that would have no effect',
    pool('  "snapshots": [],\n  "live_rot": true'),
    /"live_rot", is live_root meant\? \(line 6\)/
  ],
  [
    'pool.json',
    'a field of a snapshot',
    pool('  "snapshots": [{ "name": "s", "volume": "v",\n    "thinid": 1, "size_bytes": 1 }]'),
    /thin_id, line 5\): is "thinid" meant to be it\?/
  ],
  [
    'scenario.yaml',
    'a misspelt field',
    'summary: a\nkind: honest\nfalts: []\n',
    /"falts", is faults meant\? \(line 3\)/
  ],
  [
    'scenario.yaml',
    'a list that is none',
    'summary: a\nkind: honest\nfaults: resume-late\n',
    /faults, line 3\): write it as a list/
  ],
  [
    'hooks.yaml',
    'a misspelt field',
    `${hooks}delete_volum: e\n`,
    /"delete_volum", is delete_volume meant\? \(line 5\)/
  ],
  ['hooks.yaml', 'no YAML', `${hooks}delete_volume: [\n`, /line 6/],
  [
    'content.yaml',
    'a misspelt field',
    'staging_dir: /a\ntarget_dir: /b\nparameter: {}\n',
    /"parameter", is parameters meant\? \(line 3\)/
  ],
  [
    'content.yaml',
    'a number where text is due',
    'staging_dir: /a\ntarget_dir: /b\nparameters:\n  size: 5\n',
    /parameters\.size, line 4\): put it in quotes, "5"/
  ],
  ['snapshots.json', 'a field that is missing', '[\n  { "id": "a", "volume": "b" }\n]', /\[0\]\.image, line 2/]
]

for (const [i, [name, what, text, says]] of cases.entries()) {
  test(`${name}: ${what}`, async (t) => {
    const at = join(folder, String(i))
    await mkdir(at)
    await writeFile(join(at, name), text)
    const error = await t.throwsAsync(readers[name](at, name), { instanceOf: DeltamapperError })
    t.regex(error?.message ?? '', says)
    t.true(error?.message.includes(join(at, name)), error?.message)
    t.notRegex(error?.message ?? '', /\n|✖/)
  })
}

for (const name of Object.keys(readers)) {
  test(`${name}: a FIFO is refused, and nobody waits for its writer`, async (t) => {
    const at = join(folder, `fifo-${name}`)
    await mkdir(at)
    execFileSync('mkfifo', [join(at, name)])
    const error = await t.throwsAsync(readers[name](at, name), { instanceOf: DeltamapperError })
    t.regex(error?.message ?? '', /is no file \(but a FIFO\)/)
  })
}
