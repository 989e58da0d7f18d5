import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import { examinationOf, poolOf, thinOf } from '../../support/examination.ts'
import { adminAgent, adminAgents, helpLacks } from '../admin-agent.ts'
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
    const isOfAll = words.join(' ') === 'list'
    if (isOfAll) t.regex(stderr, /what else this agent serves is not known/)
    else t.is(stderr, method === 'createEraSnapshot' ? 'deltamapper: nobody has /dev/mapper/srv open\n' : '')
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
  // An agent that does not say what else it serves.
  const { status, stdout: all, stderr } = await order('snapshot', 'list')
  t.is(status, 0)
  t.regex(all, /\n0 snapshots; complete\n$/)
  t.regex(stderr, /^deltamapper: what else this agent serves is not known: .*gives no inventory/)
  const taken = (await order('snapshot', 'create', 'srv', 'monday')).stdout
  t.regex(taken, /^snapshot +srv\/monday$/m)
  t.regex(taken, /^is +LVM's vg0\/monday$/m)
  t.regex(taken, /^suspended for +812 ms$/m)
  t.regex((await order('snapshot', 'list', '--tracked')).stdout, /^srv\/monday .* 812 ms +exact .*\n1 snapshot of/m)
  t.is((await order('snapshot', 'delete', 'tank/monday', '--yes')).stdout, 'snapshot tank/monday is deleted\n')
})

/** An agent's node: a pool of its own, one of LVM's, one that is not active, classic snapshots and a recorded pool. */
const seen = examinationOf({
  pools: [
    poolOf({ name: 'tank', kind: 'own', thins: [thinOf({ handle: 'tank/own' })] }),
    poolOf({ thins: [thinOf({ kind: 'volume', handle: 'vg0/home' }), thinOf({ handle: 'vg0/monday' })] }),
    poolOf({ name: 'vg1/pool', state: 'inactive', thins: [thinOf({ kind: 'unknown', handle: 'vg1/sunday' })] })
  ],
  findings: (['classic-snapshot', 'store-nearly-full', 'store-lost', 'pool-full'] as const).map((kind, i) => ({
    ...{ severity: 'note', kind, about: `vg2/classic-${i}`, what: 'a', remedy: 'b', command: '' }
  })),
  recordedPools: [{ name: 'demo', folder: '/srv', snapshots: ['friday'] }]
})

test('without a pool, all that an agent serves is listed, whether or not it takes orders', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'dm-list-'))
  t.teardown(() => rmSync(folder, { recursive: true }))
  const inventory = { examine: async () => seen }
  const all = ['demo/friday', 'vg0/monday', 'vg1/sunday', 'vg2/classic-0', 'vg2/classic-1', 'vg2/classic-2']
  for (const takesOrders of [true, false]) {
    const more = { inventory, ...(takesOrders ? {} : { admin: undefined }) }
    const agent = await adminAgent(folder, String(takesOrders), undefined, more)
    t.teardown(agent.stop)
    const list = (...words: string[]) => runCommand(['snapshot', 'list', ...words, '--endpoint', agent.endpoint])
    const { status, stdout, stderr } = await list()
    t.is(status, 0, stderr)
    t.is(stderr, '')
    t.regex(stdout, /^demo\/friday +recorded snapshot +-/m)
    t.regex(stdout, /^vg0\/monday +thin snapshot +64 MiB/m)
    t.regex(stdout, /^vg1\/sunday +thin device +64 MiB +its pool is not active$/m)
    t.regex(stdout, /^vg2\/classic-2 +classic snapshot +- +the kernel has given it up$/m)
    const { served } = JSON.parse((await list('-o', 'json')).stdout) as { served: { handle: string }[] }
    // Those of its own pools it lists itself, where it takes orders.
    t.deepEqual(
      served.map(({ handle }) => handle),
      takesOrders ? all : [...all.slice(0, 1), 'tank/own', ...all.slice(1)]
    )
  }
})
