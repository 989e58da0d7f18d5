import test from 'ava'
import { adminAgents, helpLacks } from '../admin-agent.ts'
import { complaint, runCommand } from '../run-command.ts'

const { order } = adminAgents(test)
const subcommands = ['create', 'list', 'grow', 'activate', 'deactivate', 'delete', 'adopt', 'forget']

test('the help of each command teaches it', async (t) => {
  t.deepEqual(await helpLacks('volume'), [])
  for (const each of subcommands) t.deepEqual(await helpLacks('volume', each), [], each)
})

const wrongUsage: [string, string[], RegExp][] = [
  ['no command', [], /no command was given; `deltamapper volume --help`/],
  ['a name without its pool', ['create', 'documents', '--size', '1GiB'], /It is POOL\/NAME, as in tank\/documents/],
  ['a path', ['delete', 'tank/a/b'], /It is POOL\/NAME/],
  ['a path from the root', ['delete', '/dev/mapper/tank-a'], /It is POOL\/NAME/],
  ['no size', ['create', 'tank/documents'], /required option '--size <bytes>'/],
  ['no size to grow to', ['grow', 'tank/documents'], /required option '--size <bytes>'/],
  ['more instead of a size', ['grow', 'tank/documents', '--size', '+1GiB'], /byte count/],
  ['an id that is none', ['adopt', 'tank/a', '--thin-id', 'x', '--size', '1GiB'], /whole number/]
]
for (const [what, args, expected] of wrongUsage) {
  test(`wrong usage, exit status 2: ${what}`, async (t) => {
    const result = await runCommand(['volume', ...args])
    t.is(result.status, 2)
    t.is(result.stdout, '')
    t.regex(complaint(result), expected)
  })
}

test('what is asked for is what the agent is asked', async (t) => {
  const at = { pool: 'tank', name: 'documents' }
  const handle = 'tank/documents'
  const asked: [string[], string, object][] = [
    [['create', handle, '--size', '1GiB'], 'createVolume', { ...at, sizeBytes: 2 ** 30, inactive: false }],
    [['create', handle, '--size', '512', '--inactive'], 'createVolume', { ...at, sizeBytes: 512, inactive: true }],
    [['list'], 'listVolumes', { pool: '' }],
    [['list', 'tank'], 'listVolumes', { pool: 'tank' }],
    [['grow', handle, '--size', '2GiB'], 'growVolume', { ...at, sizeBytes: 2 ** 31 }],
    [['activate', handle], 'activateVolume', { ...at, writable: false }],
    [['deactivate', handle], 'deactivateVolume', at],
    [['delete', handle, '--yes'], 'deleteVolume', at],
    [
      ['adopt', handle, '--thin-id', '7', '--size', '1GiB'],
      'adoptThin',
      { ...at, thinId: 7, sizeBytes: 2 ** 30, origin: '' }
    ],
    [
      ['adopt', handle, '--thin-id', '0', '--size', '1GiB', '--origin', 'x'],
      'adoptThin',
      { ...at, thinId: 0, sizeBytes: 2 ** 30, origin: 'x' }
    ],
    [['forget', handle, '-y'], 'forgetThin', { ...at, unseen: false }],
    [['forget', handle, '--unseen', '--yes'], 'forgetThin', { ...at, unseen: true }]
  ]
  for (const [words, method, request] of asked) {
    const { status, stderr, calls } = await order('volume', ...words)
    t.is(stderr, '')
    t.is(status, 0)
    t.deepEqual<unknown, unknown>(calls, [[method, request]])
  }
})

test('answers as tables and as JSON', async (t) => {
  const { stdout: list } = await order('volume', 'list')
  t.regex(list, /^VOLUME +SIZE +MAPPED +CREATED +DEVICE\n/)
  t.regex(list, /^tank\/documents +\d+ B +0 B +2027-01-15 08:00:00Z +\/dev\/mapper\/tank-documents \(in use\)$/m)
  t.regex(list, /\n1 volume; complete\n$/)
  const { stdout: created } = await order('volume', 'create', 'tank/documents', '--size', '1GiB')
  t.regex(created, /^volume +tank\/documents$/m)
  t.regex(created, /^thin device +0, created at time 4294967295, transaction 9223372036854775808$/m)
  const json = JSON.parse((await order('volume', 'list', '-o', 'json')).stdout) as { volumes: object[] }
  t.like(json.volumes[0], {
    ...{ name: 'documents', kind: 'volume', size_bytes: 2 ** 53 - 512, transaction_id: '9223372036854775808' },
    ...{ mapped_bytes: 0, device: { path: '/dev/mapper/tank-documents', read_only: false, open_count: 3 } }
  })
  t.is((await order('volume', 'delete', 'tank/documents', '--yes')).stdout, 'volume tank/documents is deleted\n')
  t.is((await order('volume', 'forget', 'tank/documents', '--yes')).stdout, 'tank/documents is forgotten\n')
})

test('what the agent refuses ends with status 1 and its words', async (t) => {
  const result = await order('volume', 'delete', 'busy/documents', '--yes')
  t.is(result.status, 1)
  t.is(result.stdout, '')
  t.is(complaint(result), 'deltamapper: busy is in use; wait (DM_DEVICE_BUSY)')
})
