import test from 'ava'
import { adminAgents, helpLacks } from '../admin-agent.ts'
import { complaint, runCommand } from '../run-command.ts'

const { order } = adminAgents(test)
const subcommands = ['create', 'list', 'activate', 'deactivate', 'delete']

test('the help of each command teaches it', async (t) => {
  t.deepEqual(await helpLacks('snapshot'), [])
  for (const each of subcommands) t.deepEqual(await helpLacks('snapshot', each), [], each)
})

const wrongUsage: [string, string[], RegExp][] = [
  ['no command', [], /no command was given; `deltamapper snapshot --help`/],
  ['no name', ['create', 'tank/documents'], /missing required argument 'NAME'/],
  ['too many slashes', ['create', 'tank/documents/x', 'monday'], /It is POOL\/NAME/],
  ['a deadline in a pool', ['create', 'tank/documents', 'monday', '--deadline', '5'], /is for tracked volumes/],
  ['a deadline that is none', ['create', 'srv', 'monday', '--deadline', '0'], /number of seconds above 0/],
  ['a snapshot without its pool', ['delete', 'monday'], /It is POOL\/NAME/]
]
for (const [what, args, expected] of wrongUsage) {
  test(`wrong usage, exit status 2: ${what}`, async (t) => {
    const result = await runCommand(['snapshot', ...args])
    t.is(result.status, 2)
    t.is(result.stdout, '')
    t.regex(complaint(result), expected)
  })
}

test('what is asked for is what the agent is asked', async (t) => {
  const at = { pool: 'tank', name: 'monday' }
  const asked: [string[], string, object][] = [
    [['create', 'tank/documents', 'monday'], 'createSnapshot', { ...at, origin: 'documents' }],
    [['create', 'srv', 'monday'], 'createEraSnapshot', { volume: 'srv', name: 'monday', deadlineMs: 0 }],
    [
      ['create', 'srv', 'monday', '--deadline', '2.5'],
      'createEraSnapshot',
      { volume: 'srv', name: 'monday', deadlineMs: 2500 }
    ],
    [['list'], 'listSnapshots', { pool: '' }],
    [['list', '--tracked'], 'listEraSnapshots', { volume: '' }],
    [['list', 'srv', '--tracked'], 'listEraSnapshots', { volume: 'srv' }],
    [['activate', 'tank/monday'], 'activateVolume', { ...at, writable: false }],
    [['activate', 'tank/monday', '--writable'], 'activateVolume', { ...at, writable: true }],
    [['deactivate', 'tank/monday'], 'deactivateVolume', at],
    [['delete', 'tank/monday', '--yes'], 'deleteSnapshot', at]
  ]
  for (const [words, method, request] of asked) {
    const { status, stderr, calls } = await order('snapshot', ...words)
    // (Only whoever takes one of a tracked volume is warned.)
    t.is(stderr, method === 'createEraSnapshot' ? 'deltamapper: nobody has /dev/mapper/srv open\n' : '')
    t.is(status, 0)
    t.deepEqual<unknown, unknown>(calls, [[method, request]])
  }
})

test('answers as tables', async (t) => {
  const { stdout } = await order('snapshot', 'create', 'tank/documents', 'monday')
  t.regex(stdout, /^snapshot +tank\/monday$/m)
  t.regex(stdout, /^snapshot of +documents$/m)
  t.regex(stdout, /^device +inactive$/m)
  t.is(
    (await order('snapshot', 'list', 'tank')).stdout,
    'SNAPSHOT  SIZE  MAPPED  SNAPSHOT OF  CREATED  DEVICE\n0 snapshots; complete\n'
  )
  // Whoever asks for all is told where the rest is.
  t.regex(
    (await order('snapshot', 'list')).stdout,
    /\n0 snapshots; complete\n\(.*`deltamapper doctor` lists LVM's snapshots, and those of all other pools\.\)\n$/
  )
  const taken = (await order('snapshot', 'create', 'srv', 'monday')).stdout
  t.regex(taken, /^snapshot +srv\/monday$/m)
  t.regex(taken, /^is +LVM's vg0\/monday$/m)
  t.regex(taken, /^suspended for +812 ms$/m)
  t.regex((await order('snapshot', 'list', '--tracked')).stdout, /^srv\/monday .* 812 ms +exact .*\n1 snapshot of/m)
  t.is((await order('snapshot', 'delete', 'tank/monday', '--yes')).stdout, 'snapshot tank/monday is deleted\n')
})
