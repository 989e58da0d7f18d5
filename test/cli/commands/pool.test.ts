import test from 'ava'
import { adminAgents, helpLacks } from '../admin-agent.ts'
import { complaint, runCommand } from '../run-command.ts'

const { order } = adminAgents(test)
const subcommands = ['create', 'list', 'show', 'activate', 'deactivate', 'grow', 'remove', 'check', 'accept']

test('the help of each command teaches it', async (t) => {
  t.deepEqual(await helpLacks('pool'), [])
  for (const each of subcommands) t.deepEqual(await helpLacks('pool', each), [], each)
  const { stdout } = await runCommand(['pool', '--help'])
  for (const each of subcommands) t.regex(stdout, new RegExp(`^  ${each} `, 'm'))
})

const devices = ['--data', '/dev/d', '--metadata', '/dev/m']
const wrongUsage: [string, string[], RegExp][] = [
  ['no command', [], /no command was given; `deltamapper pool --help`/],
  ['an unknown command', ['format'], /unknown command 'format'.*`deltamapper pool --help`/],
  ['no name', ['create', ...devices], /missing required argument 'NAME'.*`deltamapper pool create --help`/],
  ['no data device', ['create', 'tank', '--metadata', '/dev/m'], /required option '--data <device>'/],
  ['no metadata device', ['create', 'tank', '--data', '/dev/d'], /required option '--metadata <device>'/],
  ['a block size that is none', ['create', 'tank', ...devices, '--block-size', '64xb'], /byte count/],
  ['a block size of two meanings', ['create', 'tank', ...devices, '--block-size', '64kb'], /a thousand or 1024/],
  ['a mark that is none', ['create', 'tank', ...devices, '--low-water', '5%'], /byte count/],
  ['a way to be full', ['create', 'tank', ...devices, '--when-full', 'panic'], /Allowed choices are error, queue/],
  ['two pools', ['show', 'a', 'b'], /too many arguments/],
  ['an unknown format', ['list', '-o', 'xml'], /table, json/],
  ['an endpoint that is none', ['list', '--endpoint', 'here'], /"here" is no address/]
]
for (const [what, args, expected] of wrongUsage) {
  test(`wrong usage, exit status 2: ${what}`, async (t) => {
    const result = await runCommand(['pool', ...args])
    t.is(result.status, 2)
    t.is(result.stdout, '')
    t.regex(complaint(result), expected)
  })
}

test('what is asked for is what the agent is asked', async (t) => {
  const plain = { dataDevice: '/dev/d', metadataDevice: '/dev/m', blockBytes: 65536, whenFull: 'error' }
  const asked: [string[], string, object][] = [
    [['create', 'tank', ...devices], 'createPool', { name: 'tank', ...plain }],
    [
      ['create', 'x', ...devices, '--block-size', '1MiB', '--low-water', '0', '--when-full', 'queue'],
      'createPool',
      { name: 'x', ...plain, blockBytes: 2 ** 20, lowWaterBytes: 0, whenFull: 'queue' }
    ],
    [['activate', 'tank'], 'activatePool', { pool: 'tank', withVolumes: false }],
    [['activate', 'tank', '--with-volumes'], 'activatePool', { pool: 'tank', withVolumes: true }],
    [['deactivate', 'tank', '--with-volumes'], 'deactivatePool', { pool: 'tank', withVolumes: true }],
    [['grow', 'tank'], 'growPool', { pool: 'tank' }],
    [['remove', 'tank'], 'removePool', { pool: 'tank', wipe: false }],
    [['remove', 'tank', '--wipe', '--yes'], 'removePool', { pool: 'tank', wipe: true }],
    [['show', 'tank'], 'getPool', { pool: 'tank' }],
    [['check'], 'reconcile', { pool: '' }],
    [['check', 'tank'], 'reconcile', { pool: 'tank' }],
    [['accept', 'tank', '--yes'], 'acceptKernel', { pool: 'tank' }]
  ]
  for (const [words, method, request] of asked) {
    const { status, stderr, calls } = await order('pool', ...words)
    t.is(stderr, '')
    t.is(status, 0)
    t.deepEqual<unknown, unknown>(calls, [[method, request]])
  }
})

test('answers as tables', async (t) => {
  const { stdout: list } = await order('pool', 'list')
  t.regex(list, /^POOL +STATE +DATA USED +DATA +METADATA USED +VOLUMES +SNAPSHOTS +DATA DEVICE +METADATA DEVICE\n/)
  t.regex(list, /^tank +out-of-data-space +100 % +8\.0 PiB +<0.01 % +1 +16777214 +\/dev\/disk\/by-id\/d +\/dev/m)
  t.regex(list, /^spare +inactive +- +- +- +0 +0 +\/dev\/d +\/dev\/m$/m)
  t.regex(list, /^tank: it is full\n2 pools; complete\n$/m)
  const { stdout: show } = await order('pool', 'show', 'tank')
  t.regex(show, /^state +out-of-data-space: it is full$/m)
  t.regex(show, /^metadata snapshot +held at block 4161599$/m)
  t.regex(show, /^transaction +18446744073709551615 in the catalog, 18446744073709551614 in the kernel$/m)
  t.regex(show, /^under way +create-snapshot$/m)
  const { stdout: check } = await order('pool', 'check')
  t.is(
    check,
    'settled: it was begun, and carried out\nthere is one\n    adopt it\nit is not\n    activate it\n2 findings; complete\n'
  )
  t.is((await order('pool', 'remove', 'tank')).stdout, 'pool tank is removed\n')
})

test('answers as JSON', async (t) => {
  const json = async (...words: string[]) => JSON.parse((await order('pool', ...words, '-o', 'json')).stdout) as object
  t.like(await json('show', 'tank'), {
    ...{ name: 'tank', block_bytes: 65536, transaction_id: '18446744073709551615', when_full: 'queue' },
    usage: {
      ...{ data_used_bytes: 9007199254740991, data_total_bytes: 9007199254740991, metadata_used_bytes: 4096 },
      ...{ metadata_total_bytes: 17045913600, transaction_id: '18446744073709551614' },
      ...{ held_metadata_snapshot: 4161599, needs_check: true }
    }
  })
  t.like(await json('list'), { pools: [{ name: 'tank' }, { name: 'spare', state: 'inactive' }] })
  t.like(await json('check'), {
    settled: ['it was begun, and carried out'],
    findings: [{ thin_id: 0 }, { kind: 'pool-inactive' }]
  })
  t.deepEqual(await json('remove', 'tank'), { removed: 'tank' })
})

test('what the agent refuses ends with status 1 and its words', async (t) => {
  const result = await order('pool', 'grow', 'busy')
  t.is(result.status, 1)
  t.is(result.stdout, '')
  t.is(complaint(result), 'deltamapper: busy is in use; wait (DM_DEVICE_BUSY)')
  const nobody = await runCommand(['pool', 'list', '--endpoint', 'unix:///nowhere/agent.sock'])
  t.is(nobody.status, 1)
  t.regex(complaint(nobody), /DM_UNREACHABLE/)
})
