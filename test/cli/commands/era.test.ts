import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import { pino } from 'pino'
import { DeltamapperError } from '../../../src/errors.ts'
import { startServer } from '../../../src/grpc/server.ts'
import { eraVolume, recordingBackend } from '../../grpc/admin-backend.ts'
import { ExtentBackend } from '../../grpc/extent-backend.ts'
import { adminAgent, adminAgents, helpLacks } from '../admin-agent.ts'
import { complaint, runCommand } from '../run-command.ts'

const { order } = adminAgents(test)
const subcommands = ['attach', 'detach', 'status', 'activate', 'deactivate', 'grow']

test('the help of each command teaches it', async (t) => {
  t.deepEqual(await helpLacks('era'), [])
  for (const each of subcommands) t.deepEqual(await helpLacks('era', each), [], each)
})

const devices = ['--data', '/dev/d', '--metadata', '/dev/m']
const wrongUsage: [string, string[], RegExp][] = [
  ['no command', [], /no command was given; `deltamapper era --help`/],
  ['no name', ['attach', ...devices], /missing required argument 'VOLUME'/],
  ['no metadata device', ['attach', 'srv', '--data', '/dev/d'], /required option '--metadata <device>'/],
  ['a block size that is none', ['attach', 'srv', ...devices, '--block-size', '64xb'], /byte count/],
  ['a block size of two meanings', ['attach', 'srv', ...devices, '--block-size', '64kb'], /a thousand or 1024/],
  ['neither a volume nor all', ['activate'], /no volume was named; name a volume, or say --all/],
  ['a volume and all', ['deactivate', 'srv', '--all'], /srv and --all do not go together/]
]
for (const [what, args, expected] of wrongUsage) {
  test(`wrong usage, exit status 2: ${what}`, async (t) => {
    const result = await runCommand(['era', ...args])
    t.is(result.status, 2)
    t.is(result.stdout, '')
    t.regex(complaint(result), expected)
  })
}

test('what is asked for is what the agent is asked', async (t) => {
  const plain = { dataDevice: '/dev/d', metadataDevice: '/dev/m', blockBytes: 65536, snapshotSize: '' }
  const asked: [string[], string, object][] = [
    [['attach', 'srv', ...devices], 'attachEra', { name: 'srv', ...plain, allowLossyKernel: false }],
    [
      ['attach', 'srv', ...devices, '--block-size', '1MiB', '--snapshot-size', '10g', '--allow-lossy-kernel'],
      'attachEra',
      { name: 'srv', ...plain, blockBytes: 2 ** 20, snapshotSize: '10g', allowLossyKernel: true }
    ],
    [['detach', 'srv', '--yes'], 'detachEra', { volume: 'srv' }],
    [['status'], 'listEra', { volume: '' }],
    [['status', 'srv'], 'listEra', { volume: 'srv' }],
    [['activate', 'srv'], 'activateEra', { volume: 'srv', startOver: false }],
    [['activate', 'srv', '--start-over', '--yes'], 'activateEra', { volume: 'srv', startOver: true }],
    [['deactivate', 'srv'], 'deactivateEra', { volume: 'srv', atShutdown: false }],
    [['deactivate', 'srv', '--at-shutdown'], 'deactivateEra', { volume: 'srv', atShutdown: true }],
    [['grow', 'srv'], 'growEra', { volume: 'srv' }]
  ]
  for (const [words, method, request] of asked) {
    const { status, stderr, calls } = await order('era', ...words)
    t.is(stderr, '')
    t.is(status, 0)
    t.deepEqual<unknown, unknown>(calls, [[method, request]])
  }
})

test('all of them, one after the other', async (t) => {
  const { status, calls } = await order('era', 'activate', '--all')
  t.is(status, 0)
  t.deepEqual<unknown, unknown>(calls, [
    ['listEra', { volume: '' }],
    ['activateEra', { volume: 'srv', startOver: false }],
    ['activateEra', { volume: 'db', startOver: false }]
  ])
})

test('an agent that is about to start is waited for, and for so long only', async (t) => {
  const words = ['era', 'activate', '--all', '--endpoint', 'unix:///nonexistent/agent.sock']
  const begun = performance.now()
  const { status, stderr } = await runCommand([...words, '--wait', '1'])
  t.is(status, 1)
  t.regex(stderr, /DM_UNREACHABLE/)
  t.true(performance.now() - begun > 1000)
  t.is((await order('era', 'activate', 'srv', '--wait', '10')).status, 0)
  t.is((await order('era', 'deactivate', '--all', '--wait', '10')).status, 0)
})

test('an agent that is being restarted is waited for, and then lets go', async (t) => {
  const agent = await adminAgent()
  await agent.stop()
  const endpoint = `${agent.endpoint}-later`
  const done = runCommand(['era', 'deactivate', '--all', '--at-shutdown', '--wait', '60', '--endpoint', endpoint])
  const later = await adminAgent(undefined, undefined, endpoint)
  t.teardown(() => later.stop())
  t.is((await done).status, 0)
  t.deepEqual(
    later.calls.filter(([method]) => method === 'deactivateEra'),
    ['srv', 'db'].map((volume) => ['deactivateEra', { volume, atShutdown: true }])
  )
})

test('answers as tables and as JSON', async (t) => {
  const { stdout } = await order('era', 'status')
  t.regex(stdout, /^srv +active .* 1 GiB +4294967295 .* 60 +\/dev\/vg0\/srv +\/dev\/vg0\/srv_era$/m)
  t.regex(stdout, /^db +inactive /m)
  t.regex(stdout, /^srv: it is full$/m)
  t.regex(stdout, /^2 tracked volumes; complete$/m)
  const one = (await order('era', 'status', 'srv')).stdout
  t.regex(one, /^state +active: it is full$/m)
  t.regex(one, /^device +\/dev\/mapper\/srv$/m)
  t.regex(one, /^history +since it was attached \(id b5c2\)$/m)
  t.regex(one, /^under way +snapshot$/m)
  t.is((await order('era', 'detach', 'srv', '--yes')).stdout, 'volume srv is detached\n')
  const json = JSON.parse((await order('era', 'attach', 'srv', ...devices, '-o', 'json')).stdout) as object
  t.like(json, { name: 'srv', size_bytes: 2 ** 53 - 512, usage: { current_era: 2 ** 32 - 1 } })
})

test('devices that are late are waited for, each volume by itself, and others are not tried again', async (t) => {
  const { backend, calls } = recordingBackend()
  const tries = new Map<string, number>()
  const activateEra = async (request: { volume: string }) => {
    const { volume } = request
    calls.push(['activateEra', request])
    tries.set(volume, (tries.get(volume) ?? 0) + 1)
    if (volume === 'srv' && tries.get(volume) !== 3) {
      throw new DeltamapperError('DM_NO_SUCH_DEVICE', 'there is no /dev/vg0/srv', 'wait')
    }
    if (volume === 'db') throw new DeltamapperError('DM_ERA_HISTORY_LOST', 'its metadata is not what it was', 'see')
    return eraVolume
  }
  const folder = mkdtempSync(join(tmpdir(), 'dm-era-wait-'))
  t.teardown(() => rmSync(folder, { recursive: true }))
  const endpoint = `unix://${folder}/agent.sock`
  const server = await startServer({
    ...{ listen: [endpoint], backend: new ExtentBackend(), admin: { ...backend, activateEra } },
    ...{ identity: { driverName: 'test.deltamapper.dev' }, logger: pino({ level: 'silent' }) }
  })
  t.teardown(() => server.drain(0))
  const result = await runCommand(['era', 'activate', '--all', '--wait', '60', '--endpoint', endpoint])
  t.is(result.status, 1)
  t.regex(complaint(result), /DM_ERA_HISTORY_LOST/)
  t.deepEqual(
    [...tries],
    [
      ['srv', 3],
      ['db', 1]
    ]
  )
  tries.clear()
  t.is((await runCommand(['era', 'activate', 'srv', '--wait', '60', '--endpoint', endpoint])).status, 0)
  t.is(tries.get('srv'), 3)
  tries.clear()
  const impatient = await runCommand(['era', 'activate', 'srv', '--endpoint', endpoint])
  t.regex(complaint(impatient), /there is no \/dev\/vg0\/srv.*DM_NO_SUCH_DEVICE/)
  t.is(tries.get('srv'), 1)
})
