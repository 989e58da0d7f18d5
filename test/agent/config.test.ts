import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'

import test from 'ava'

import { type AgentOptions, DEFAULT_LISTEN, loadConfig } from '../../src/agent/config.ts'
import { DeltamapperError } from '../../src/errors.ts'
import { testFolder } from '../support/test-folder.ts'

const folder = testFolder(test)
let files = 0

async function configFile(content: string): Promise<string> {
  const path = join(folder, `config-${files++}.yaml`)
  await writeFile(path, content)
  return path
}

test('without a file and without options everything has its default', async (t) => {
  const { walkers, ...rest } = await loadConfig({})
  t.true(Number.isInteger(walkers) && walkers >= 1 && walkers <= 4)
  t.deepEqual(rest, {
    listen: [DEFAULT_LISTEN],
    allowLoopbackTcp: false,
    socketMode: 0o600,
    driverName: 'deltamapper.local',
    recorded: {},
    lvmCommand: ['lvm'],
    catalog: '/var/lib/deltamapper/catalog.sqlite',
    lease: { freePercent: 25, freeBlocks: 1024, holdSeconds: 600, waitSeconds: 30 },
    era: { deadlineSeconds: 30, snapshotCommands: {}, keepSnapshots: 1000, keepDays: 730, trustRestarts: false },
    bases: { keep: 3, days: 45, maxBytes: 2 ** 30 },
    cow: { compare: 'auto', compareMebibytes: 1024, compareMebibytesPerSecond: 64, memoryMebibytes: 128 },
    strictBases: false,
    engine: 'native',
    toolCommand: [],
    directReads: false,
    reads: 'auto',
    readDeadlineSeconds: 30,
    examinationDeadlineSeconds: 8,
    maxStreams: 256,
    maxStreamsPerClient: 192,
    idleSeconds: 1800,
    logLevel: 'info',
    drainSeconds: 20
  })
})

test('an empty file is as good as none', async (t) => {
  const defaults = await loadConfig({})
  for (const content of ['', '\n', '# nothing but a comment\n', '---\n', 'null', '{}']) {
    t.deepEqual(await loadConfig({ configFile: await configFile(content) }), defaults, JSON.stringify(content))
  }
})

const everything = {
  listen: ['unix:///run/a.sock', 'unix:///run/b.sock'],
  tls: { certificate: '/certs/tls.crt', key: '/certs/tls.key', ca: '/certs/ca.crt', clientName: 'router.deltamapper' },
  allowLoopbackTcp: true,
  socketMode: '0660',
  socketGroup: 'backup',
  driverName: 'local.csi.example.org',
  recorded: { demo: '/srv/demo', 'two.2': 'relative/folder' },
  live: false,
  lvmCommand: ['nsenter', '-t', '1', '-m', 'lvm'],
  catalog: '/tmp/catalog.sqlite',
  lease: { freePercent: 10, freeBlocks: 50, holdSeconds: 60, waitSeconds: 0.5 },
  era: {
    keepSnapshots: 90,
    keepDays: 30,
    deadlineSeconds: 5,
    trustRestarts: true,
    snapshotCommands: { srv: { take: ['/usr/bin/snap', 'take'], remove: ['/usr/bin/snap'] } }
  },
  bases: { keep: 1, days: 7, maxBytes: 1000, folder: '/srv/bases' },
  cow: { compare: 'never', compareMebibytes: 10, compareMebibytesPerSecond: 5, memoryMebibytes: 32 },
  strictBases: true,
  engine: 'both',
  toolCommand: ['env', 'PATH=/opt/tools'],
  directReads: true,
  reads: 'preadv',
  readDeadlineSeconds: 5,
  examinationDeadlineSeconds: 20,
  readMebibytesPerSecond: 40,
  walkers: 3,
  maxStreams: 40,
  maxStreamsPerClient: 7,
  idleSeconds: 60,
  monitoring: 'tcp://127.0.0.1:8081',
  logLevel: 'debug',
  drainSeconds: 0.5
}

test('every field can be set, in YAML and in JSON', async (t) => {
  const yaml = `
listen: [unix:///run/a.sock, 'unix:///run/b.sock']
tls:
  certificate: /certs/tls.crt
  key: /certs/tls.key
  ca: /certs/ca.crt
  clientName: router.deltamapper
allowLoopbackTcp: true
socketMode: '0660'
socketGroup: backup
driverName: local.csi.example.org
recorded:
  demo: /srv/demo
  two.2: relative/folder
live: false
lvmCommand: [nsenter, -t, '1', -m, lvm]
catalog: /tmp/catalog.sqlite
lease: { freePercent: 10, freeBlocks: 50, holdSeconds: 60, waitSeconds: 0.5 }
era:
  keepSnapshots: 90
  keepDays: 30
  deadlineSeconds: 5
  trustRestarts: true
  snapshotCommands: { srv: { take: [/usr/bin/snap, take], remove: [/usr/bin/snap] } }
bases: { keep: 1, days: 7, maxBytes: 1000, folder: /srv/bases }
cow: { compare: never, compareMebibytes: 10, compareMebibytesPerSecond: 5, memoryMebibytes: 32 }
strictBases: true
engine: both
toolCommand: [env, PATH=/opt/tools]
directReads: true
reads: preadv
readDeadlineSeconds: 5
examinationDeadlineSeconds: 20
readMebibytesPerSecond: 40
walkers: 3
maxStreams: 40
maxStreamsPerClient: 7
idleSeconds: 60
monitoring: tcp://127.0.0.1:8081
logLevel: debug
drainSeconds: 0.5
`
  for (const content of [yaml, JSON.stringify(everything)]) {
    t.deepEqual(await loadConfig({ configFile: await configFile(content) }), {
      ...everything,
      socketMode: 0o660,
      engine: 'both',
      logLevel: 'debug'
    })
  }
})

test('a mode is octal, with or without its zero', async (t) => {
  for (const [text, mode] of [
    ['"0600"', 0o600],
    ['"600"', 0o600],
    ['"0777"', 0o777],
    ['"000"', 0]
  ] as const) {
    t.is((await loadConfig({ configFile: await configFile(`socketMode: ${text}`) })).socketMode, mode)
  }
  t.is((await loadConfig({ configFile: await configFile('socketGroup: 0') })).socketGroup, 0)
})

test('the command line goes before the file, field by field', async (t) => {
  const path = await configFile(JSON.stringify(everything))
  const config = await loadConfig({
    configFile: path,
    listen: ['unix:///tmp/mine.sock'],
    recorded: { demo: '/tmp/demo', more: '/tmp/more' },
    engine: 'tools'
  })
  t.is(config.engine, 'tools')
  t.deepEqual(config.listen, ['unix:///tmp/mine.sock'])
  t.deepEqual(config.recorded, { demo: '/tmp/demo', 'two.2': 'relative/folder', more: '/tmp/more' })
  t.is(config.driverName, everything.driverName)
  const same = await loadConfig({ configFile: path, listen: [], recorded: {} })
  t.deepEqual(same.listen, everything.listen)
  t.deepEqual(same.recorded, everything.recorded)
  t.is(same.engine, 'both')
  t.deepEqual((await loadConfig({ recorded: { a: 'b' } })).recorded, { a: 'b' })
})

const wrong: [name: string, content: string, says: RegExp][] = [
  ['a misspelt field', 'socketmode: "0600"', /Unrecognized key: "socketmode"/],
  ['a field of a newer version', 'lvm: true\nwalkers: 2', /Unrecognized key/],
  ['no address', 'listen: []', /listen/],
  ['TLS by halves', 'tls: { certificate: a, key: b, ca: c }', /clientName/],
  ['an address instead of a list', 'listen: unix:///run/a.sock', /listen/],
  [
    'a mode that YAML takes for a number',
    'walkers: 2\nsocketMode: 0660',
    /expected string.* \(socketMode, line 2\): put it in quotes, "0660"$/
  ],
  ['a name with a letter too few', 'walkers: 2\nlistn: []', /Unrecognized key: "listn", is listen meant\? \(line 2\)/],
  ['a name in small letters', '\n\nsocketmode: "0600"', /"socketmode", is socketMode meant\? \(line 3\)/],
  ['the beginning of a name', 'lease:\n  hold: 5', /"hold", is holdSeconds meant\? \(lease, line 2\)/],
  [
    'a name below a name of our own',
    'era: { snapshotCommands: { srv: { tak: [x] } } }',
    /"tak", is take meant\? \(era/
  ],
  ['a name like no other', 'colour: red', /Unrecognized key: "colour" \(line 1\)/],
  ['a line of JSON', '{\n  "walkers": 0\n}', /\(walkers, line 2\)/],
  ['a line of a list', 'listen:\n  - unix:///a\n  - 5', /\(listen\[1\], line 3\): put it in quotes, "5"/],
  ['a number in quotes', 'walkers: "2"', /\(walkers, line 1\): write it without quotes, 2/],
  ['a value that is there alone', 'listen: unix:///run/a.sock', /: write it as a list, \[unix:\/\/\/run\/a\.sock\]/],
  ['a yes in place of true', 'live: yes', /\(live, line 1\): true or false, without quotes/],
  ['a mode that is no octal number', 'socketMode: "0680"', /is no file mode such as "0660".*socketMode/],
  ['a mode with more than permissions', 'socketMode: "4755"', /is no file mode/],
  ['a mode in letters', 'socketMode: rw-rw----', /is no file mode/],
  ['an empty group', 'socketGroup: ""', /socketGroup/],
  ['a negative group', 'socketGroup: -1', /socketGroup/],
  ['a name that is no source', 'recorded: {a/b: /srv}', /is no source name/],
  ['a name that is the folder above', 'recorded: {..: /srv}', /is no source name/],
  ['an empty folder', 'recorded: {a: ""}', /recorded/],
  ['recorded pools as a list', 'recorded: [/srv/a]', /recorded/],
  ['no walkers', 'walkers: 0', /walkers/],
  ['half a walker', 'walkers: 1.5', /walkers/],
  ['too many walkers', 'walkers: 65', /walkers/],
  ['an unknown log level', 'logLevel: verbose', /logLevel/],
  ['a negative time', 'drainSeconds: -1', /drainSeconds/],
  ['a time that is none', 'drainSeconds: soon', /drainSeconds/],
  ['a time that never ends', 'drainSeconds: .inf', /drainSeconds/],
  ['an engine that is none', 'engine: thin_delta', /engine/],
  ['a command line for the tools', 'toolCommand: sudo', /toolCommand/],
  ['reads that are neither', 'directReads: "yes"', /directReads/],
  ['reads without end', 'readDeadlineSeconds: 0', /readDeadlineSeconds/],
  ['no reads at all', 'readMebibytesPerSecond: 0', /readMebibytesPerSecond/],
  ['a node that is neither', 'live: 1', /live/],
  ['no command for LVM', 'lvmCommand: []', /lvmCommand/],
  ['a command line for LVM', 'lvmCommand: sudo lvm', /lvmCommand/],
  ['an empty word in it', 'lvmCommand: [lvm, ""]', /lvmCommand/],
  ['a program in the current directory', 'lvmCommand: [./lvm]', /depends on the current directory.*lvmCommand/],
  ['tools from there', 'toolCommand: [env, "PATH=:/bin"]', /names the current directory.*toolCommand/],
  [
    'a snapshot command from there',
    'era: { snapshotCommands: { srv: { take: [bin/snap], remove: [snap] } } }',
    /depends on the current directory.*era\.snapshotCommands/
  ],
  ['no catalog', 'catalog: ""', /catalog/],
  ['more than all of the metadata', 'lease: {freePercent: 101}', /lease/],
  ['a lease that is over at once', 'lease: {holdSeconds: 0}', /lease/],
  ['a misspelt field of a field', 'lease: {hold: 5}', /Unrecognized key: "hold".*lease/],
  ['a list', '- a\n- b', /no mapping of fields/],
  ['a text', 'hello', /no mapping of fields/],
  ['a number', '5', /no mapping of fields/],
  ['broken YAML', 'listen: [a, b\nwalkers: 1', /line 2/],
  ['the same field twice', 'walkers: 1\nwalkers: 2', /unique/],
  ['tabs for spaces', 'recorded:\n\ta: b', /[Tt]ab/],
  ['two documents', 'walkers: 1\n---\nwalkers: 2', /multiple documents/],
  ['binary', '\0\u0001\u0002', /./]
]

for (const [name, content, says] of wrong) {
  test(`${name}: one line that says so`, async (t) => {
    const path = await configFile(content)
    await refused(t, { configFile: path }, new RegExp(`^the configuration in ${path} cannot be used: .`), says)
  })
}

const notServable: [string, string, RegExp][] = [
  ['an address that is none', 'listen: [nonsense]', /nonsense/],
  ['TCP without TLS', "listen: ['tcp://0.0.0.0:50051']", /TCP needs mutual TLS/],
  ['a group that there is not', 'socketGroup: no-such-group-anywhere', /no group "no-such-group-anywhere"/],
  ['a name that is no driver', 'driverName: -x', /is no CSI driver name/]
]
for (const [name, content, says] of notServable) {
  test(`${name}: found before anything is touched`, async (t) => {
    const path = await configFile(content)
    const error = await t.throwsAsync<DeltamapperError>(loadConfig({ configFile: path }), {
      instanceOf: DeltamapperError
    })
    t.is(error?.code, 'DM_CONFIG_INVALID')
    t.regex(error?.message ?? '', says)
  })
}

async function refused(t: import('ava').ExecutionContext, options: AgentOptions, ...says: RegExp[]): Promise<void> {
  const error = await t.throwsAsync<DeltamapperError>(loadConfig(options), { instanceOf: DeltamapperError })
  t.is(error?.code, 'DM_CONFIG_INVALID')
  for (const each of says) t.regex(error?.message ?? '', each)
  t.notRegex(error?.line ?? '', /[\r\n]/)
  t.regex(error?.remedy ?? '', /docs\/reference\.md/)
}

test('several mistakes are all said at once', async (t) => {
  await refused(
    t,
    { configFile: await configFile('walkers: 0\nlogLevel: loud\ntypo: 1') },
    /walkers/,
    /logLevel/,
    /typo/
  )
})

test('a file that cannot be read is said', async (t) => {
  const missing = join(folder, 'missing.yaml')
  await refused(t, { configFile: missing }, /ENOENT/, new RegExp(missing))
  const directory = join(folder, 'directory.yaml')
  await mkdir(directory)
  await refused(t, { configFile: directory }, /is no file \(but a folder\)/)
})

test('options on the command line are held to the same rules', async (t) => {
  await refused(t, { recorded: { 'a b': '/srv' } }, /the command line/, /is no source name/)
  await refused(t, { recorded: { a: '' } }, /the command line/)
})

test('recorded pools on the command line do not make a wrong list in the file right', async (t) => {
  for (const content of ['recorded: /srv/a', 'recorded: [/srv/a]', 'recorded: 5']) {
    await refused(t, { configFile: await configFile(content), recorded: { b: '/srv/b' } }, /recorded/)
  }
  const config = await loadConfig({ configFile: await configFile('recorded:'), recorded: { b: '/srv/b' } })
  t.deepEqual(config.recorded, { b: '/srv/b' })
})
