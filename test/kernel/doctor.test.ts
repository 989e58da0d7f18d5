/**
 * `deltamapper doctor` on a node with real pools: LVM's and plain ones, well, inactive, full and failed, with snapshots that can serve as
 * base and others that cannot, and metadata snapshots of whoever. Runs inside the kernel lab:
 * node test/lab/run.ts test/kernel/doctor.test.ts
 */
import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import { askForExamination } from '../../src/agent/inventory/ask.ts'
import type { AsBase, Examination, Finding, PoolFacts } from '../../src/agent/inventory/examination.ts'
import { connectAdmin } from '../../src/grpc/admin-client.ts'
import { runCommand } from '../cli/run-command.ts'
import { answerTo } from './ask.ts'
import { run, sectorBytes, sendMessage } from './dmsetup.ts'
import { loopDisk } from './era-lab.ts'
import { LiveAgent } from './live-agent.ts'
import {
  createGroup,
  createPool,
  createSnapshot,
  createThick,
  createThin,
  lvm,
  prepareLvm,
  writeBlocks
} from './lvm-setup.ts'
import { RawPool } from './raw-pool.ts'

const mebibyte = 2 ** 20
const monitoring = 'tcp://127.0.0.1:8081'
const place = (slot: number) => slot * 32 * mebibyte

prepareLvm()
let agent: LiveAgent
let plain: RawPool

test.before(async () => {
  run('losetup', ['--offset', String(512 * mebibyte), '/dev/loop0', '/dev/ubda'])
  createGroup('vg-0', '/dev/loop0')
  createPool('vg-0', 'pool', 64)
  const volume = createThin('vg-0', 'pool', 'volume', 32)
  writeBlocks(volume, 0, 20, 'a')
  for (const name of ['monday', 'tuesday', 'never']) {
    createSnapshot('vg-0', 'volume', name, { active: name === 'tuesday' })
    writeBlocks(volume, 5, 3, 'b')
  }
  createPool('vg-0', 'cold', 8)
  createThin('vg-0', 'cold', 'asleep', 8)
  lvm('vgchange', '--activate', 'n', 'vg-0')
  lvm('lvchange', '--activate', 'y', 'vg-0/volume', 'vg-0/tuesday', '--ignoreactivationskip')
  createThick('vg-0', 'thick', 4)

  plain = new RawPool({ name: 'plain', offsetBytes: place(0), metadataBytes: 4 * mebibyte, dataBytes: 8 * mebibyte })
  plain.createVolume('origin', 0, 64)
  plain.write('origin', 0, 8)
  plain.snapshot('origin', 'snap-1', 1)
  plain.write('origin', 4, 8)
  plain.snapshot('origin', 'snap-2', 2)
  plain.deactivate('snap-2')
  agent = await LiveAgent.start({ config: { lease: { waitSeconds: 0 }, monitoring, examinationDeadlineSeconds: 60 } })
})
test.after.always(async () => {
  if (agent.child.exitCode === null) await agent.kill()
})

type Seen = Examination

/** What the command prints as JSON, by the names of our own objects. */
async function doctor(
  options: readonly string[],
  env: NodeJS.ProcessEnv = {}
): Promise<Seen & { endpoint: string | null; status: number | null; stderr: string }> {
  const { status, stdout, stderr } = await runCommand(['doctor', '-o', 'json', ...options], {
    env: { ...process.env, ...env }
  })
  const printed = camelCase(JSON.parse(stdout)) as Examination & { endpoint: string | null }
  return { ...printed, status, stderr }
}

function camelCase(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(camelCase)
  if (typeof value !== 'object' || value === null) return value
  const name = (key: string) => key.replaceAll(/_([a-z])/g, (_, letter: string) => letter.toUpperCase())
  return Object.fromEntries(Object.entries(value).map(([key, each]) => [name(key), camelCase(each)]))
}

/** The same, without the command. */
const asked = () => askForExamination(agent.address, { deadlineMs: 540_000 })

function pool({ pools }: Seen, name: string): PoolFacts {
  const found = pools.find((each) => each.name === name)
  if (!found) throw new Error(`no pool ${name} in ${JSON.stringify(pools.map((each) => each.name))}`)
  return found
}

function bases({ pools }: Seen): Record<string, AsBase> {
  const thins = pools.flatMap(({ thins }) => thins)
  return Object.fromEntries(thins.map(({ handle, asBase }) => [handle, asBase]))
}

function finding({ findings }: Seen, kind: string, about?: string): Finding | undefined {
  return findings.find((each) => each.kind === kind && (about === undefined || each.about === about))
}

test.serial('what there is, and what stands in the way', async (t) => {
  const seen = await doctor(['--endpoint', agent.address])
  const { deviceMapper, lvm: lvmFacts, blockDevices, catalog, node } = seen
  t.is(seen.endpoint, agent.address)
  t.is(seen.seenBy, 'agent')
  t.regex(deviceMapper.libraryVersion, /^1\.02\./)
  t.deepEqual(
    deviceMapper.targets.filter(({ name }) => /^thin/.test(name)).map(({ name }) => name),
    ['thin', 'thin-pool']
  )
  t.is(node.kernel, execFileSync('uname', ['-r'], { encoding: 'utf8' }).trim())
  t.true(blockDevices.devices.some(({ path, sizeBytes }) => path === '/dev/ubda' && sizeBytes > 0))
  t.deepEqual(
    lvmFacts.groups.map(({ name, untracked, missingDisks }) => ({ name, untracked, missingDisks })),
    [{ name: 'vg-0', untracked: ['vg-0/thick'], missingDisks: 0 }]
  )
  t.true(lvmFacts.inUse && catalog.consulted)
  t.deepEqual(
    seen.pools.map(({ name, kind, state, thins }) => [name, kind, state, thins.length]),
    [
      ['plain', 'plain', 'read-write', 2],
      ['vg-0/cold', 'lvm', 'inactive', 1],
      ['vg-0/pool', 'lvm', 'read-write', 4]
    ]
  )
  const { usage, devices, unnamedDevices, metadataSnapshot, metadataDevice, whenFull } = pool(seen, 'plain')
  t.like(usage, { blockBytes: 65536, dataTotalBytes: 8 * mebibyte, metadataTotalBytes: 4 * mebibyte })
  t.is(usage?.dataUsedBytes, (8 + 4 + 4) * 65536)
  t.deepEqual([devices, unnamedDevices, metadataSnapshot], [3, 1, undefined])
  t.deepEqual([metadataDevice, whenFull], ['/dev/mapper/plain-metadata', 'error'])
  t.deepEqual(
    pool(seen, 'vg-0/pool')
      .thins.map(({ handle, kind, active }) => [handle, kind, active])
      .sort(),
    [
      ['vg-0/monday', 'snapshot', false],
      ['vg-0/never', 'snapshot', false],
      ['vg-0/tuesday', 'snapshot', true],
      ['vg-0/volume', 'unknown', true]
    ]
  )
  t.like(finding(seen, 'pool-inactive'), {
    severity: 'problem',
    about: 'vg-0/cold',
    command: 'lvchange -ay -K vg-0/cold'
  })
  t.like(finding(seen, 'volumes-untracked'), { severity: 'note', about: 'vg-0' })
  t.like(finding(seen, 'thins-unnamed'), { severity: 'note', about: 'plain' })
  t.is(seen.status, 1)
  t.is(seen.stderr, '')
})

test.serial('the agent has logged what it found at its start', (t) => {
  const line = agent.log.find(({ msg }) => msg === 'inventory')
  t.like(line, {
    pools: ['plain (plain, read-write)', 'vg-0/cold (lvm, inactive)', 'vg-0/pool (lvm, read-write)'],
    problems: 1
  })
  t.true(agent.log.some(({ kind, level }) => kind === 'pool-inactive' && level === 40))
})

test.serial('which snapshots can serve as base', async (t) => {
  t.deepEqual(new Set(Object.values(bases(await asked()))), new Set<AsBase>(['never-served', 'unknown']))
  const client = agent.client()
  for (const target of ['vg-0/monday', 'vg-0/tuesday', 'plain/snap-1']) await answerTo(client, { target })
  t.like(bases(await asked()), {
    'vg-0/monday': 'unchanged',
    'vg-0/tuesday': 'unchanged',
    'plain/snap-1': 'unchanged',
    'vg-0/never': 'never-served'
  })
  writeBlocks('/dev/vg-0/tuesday', 30, 1, 'x')
  lvm('lvremove', 'vg-0/monday')
  createSnapshot('vg-0', 'volume', 'monday')
  const seen = await asked()
  t.like(bases(seen), { 'vg-0/monday': 'changed', 'vg-0/tuesday': 'changed', 'plain/snap-1': 'unchanged' })
  t.regex(finding(seen, 'base-changed', 'vg-0/pool')?.what ?? '', /vg-0\/(monday, vg-0\/tuesday|tuesday, vg-0\/monday)/)
})

test.serial('without an agent it looks by itself, and says what it cannot know', async (t) => {
  const own = await doctor(['--local', '--wait', '60'])
  t.deepEqual([own.endpoint, own.seenBy], [null, 'command'])
  t.deepEqual(
    own.pools.map(({ name }) => name),
    ['plain', 'vg-0/cold', 'vg-0/pool']
  )
  t.true(Object.values(bases(own)).every((each) => each === 'unknown'))
  t.is(finding(own, 'agent-silent'), undefined)
})

test.serial('a held metadata snapshot, and whose', async (t) => {
  sendMessage('plain', 'reserve_metadata_snap')
  sendMessage('plain', 'create_snap 3 0')
  const seen = await asked()
  t.like(pool(seen, 'plain').metadataSnapshot, {
    whose: 'foreign',
    ambiguous: false,
    snapshotsSince: 1,
    transactionsSince: '0',
    users: []
  })
  t.like(finding(seen, 'metadata-snapshot-foreign'), {
    severity: 'warning',
    about: 'plain',
    command: 'dmsetup message plain 0 release_metadata_snap'
  })
  // Whoever is not the agent cannot tell.
  const silent = await doctor(['--endpoint', 'unix:///run/tmp/nobody.sock', '--wait', '60'])
  t.is(pool(silent, 'plain').metadataSnapshot?.whose, 'unknown')
  t.like(finding(silent, 'agent-silent'), { severity: 'problem', about: 'unix:///run/tmp/nobody.sock' })
  t.is(silent.status, 1)
  // Nothing that is offered is done.
  t.regex(run('dmsetup', ['status', '--noflush', 'plain']), /^0 \d+ thin-pool 0 \d+\/\d+ \d+\/\d+ \d+ rw /)
  sendMessage('plain', 'release_metadata_snap')
  t.is(pool(await asked(), 'plain').metadataSnapshot, undefined)
})

/** Puts another target in the place of a device below a pool. */
function swap(device: string, bytes: number, target: string): void {
  run('dmsetup', ['suspend', '--nolockfs', '--noflush', device])
  run('dmsetup', ['load', device, '--table', `0 ${bytes / sectorBytes} ${target}`])
  run('dmsetup', ['resume', device])
}

/** A write that fails, or is found out only afterwards. */
function tryToWrite(pool: RawPool, volume: string, block: number, count = 1): void {
  try {
    pool.write(volume, block, count)
  } catch {
    // As expected.
  }
}

async function until(t: ExecutionContext, look: () => Promise<Seen>, good: (seen: Seen) => boolean): Promise<Seen> {
  for (let round = 0; ; round++) {
    const seen = await look()
    if (good(seen) || round === 20) return seen
    t.log(`round ${round}`)
  }
}

test.serial('full, read-only and failed pools, and suspended devices', async (t) => {
  const small = { metadataBytes: 4 * mebibyte, dataBytes: 2 * mebibyte }
  const full = new RawPool({ name: 'full', offsetBytes: place(1), ...small })
  full.createVolume('full-volume', 0, 64)
  tryToWrite(full, 'full-volume', 0, 40)
  const sick = new RawPool({ name: 'sick', offsetBytes: place(2), ...small })
  sick.createVolume('sick-volume', 0, 32)
  sick.write('sick-volume', 0, 2)
  swap('sick-metadata', small.metadataBytes, `flakey /dev/ubda ${place(2) / sectorBytes} 0 100 1 error_writes`)
  tryToWrite(sick, 'sick-volume', 10)
  run('bash', ['-c', 'dmsetup message sick 0 "create_thin 9" || true'])
  const dead = new RawPool({ name: 'dead', offsetBytes: place(3), ...small })
  dead.createVolume('dead-volume', 0, 32)
  swap('dead-metadata', small.metadataBytes, 'error')
  tryToWrite(dead, 'dead-volume', 10)
  run('bash', ['-c', 'dmsetup status dead; dmsetup message dead 0 "create_thin 9" || true'])

  const seen = await until(t, asked, (each) => pool(each, 'dead').state === 'failed')
  t.is(pool(seen, 'full').state, 'out-of-data-space')
  t.like(finding(seen, 'pool-full'), { severity: 'problem', about: 'full' })
  t.like(pool(seen, 'sick'), { state: 'read-only', needsCheck: true })
  t.like(finding(seen, 'pool-needs-check'), { severity: 'problem', about: 'sick' })
  // Its metadata can be read, so what is in it is known.
  t.is(pool(seen, 'sick').problem, undefined)
  t.is(pool(seen, 'dead').state, 'failed')
  t.like(finding(seen, 'pool-failed'), { severity: 'problem', about: 'dead' })
  t.like(pool(seen, 'dead').problem, { code: 'DM_READ_FAILED' })
  // The others are none the worse for it.
  t.like(pool(seen, 'plain'), { state: 'read-write', devices: 4 })

  run('dmsetup', ['suspend', 'origin'])
  try {
    const waiting = await asked()
    t.deepEqual(waiting.deviceMapper.suspended, ['origin'])
    t.like(finding(waiting, 'device-suspended'), { severity: 'warning', command: 'dmsetup resume origin' })
    t.like(waiting.blockDevices.problem, { code: 'DM_DEVICE_BUSY' })
  } finally {
    run('dmsetup', ['resume', 'origin'])
  }
})

test.serial('a metadata device that hangs keeps nothing else away', async (t) => {
  run('dmsetup', ['suspend', '--nolockfs', '--noflush', 'plain-metadata'])
  try {
    const seen = await asked()
    t.truthy(pool(seen, 'plain').problem)
    t.is(pool(seen, 'vg-0/pool').problem, undefined)
    t.log(`${seen.tookMs} ms; ${JSON.stringify(pool(seen, 'plain').problem)}`)
  } finally {
    run('dmsetup', ['resume', 'plain-metadata'])
  }
  const again = await asked()
  t.is(pool(again, 'plain').problem, undefined)
})

test.serial('LVM that does not answer is one problem among others', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'silent-lvm-'))
  writeFileSync(join(folder, 'lvm'), '#!/bin/sh\nexit 5\n', { mode: 0o755 })
  const seen = await doctor(['--local', '--wait', '60'], { PATH: `${folder}:${process.env['PATH']}` })
  t.like(finding(seen, 'lvm-silent'), { severity: 'problem' })
  t.like(pool(seen, 'vg-0/pool'), { kind: 'lvm', state: 'read-write' })
  t.is(pool(seen, 'plain').problem, undefined)
})

test.serial(
  'a tracked volume is no volume whose changes cannot be told, and what is wrong with it is said',
  async (t) => {
    run('/run/modprobe', ['dm-era'])
    const admin = connectAdmin(agent.address)
    t.teardown(() => admin.close())
    const metadata = loopDisk(4)
    await admin.attachEra({
      ...{ name: 'srv', dataDevice: '/dev/vg-0/thick', metadataDevice: metadata.path, blockBytes: 65536 },
      ...{ snapshotSize: '', allowLossyKernel: false }
    })
    sendMessage('srv', 'take_metadata_snap')
    const seen = await asked()
    t.like(seen.trackedVolumes, [{ name: 'srv', deviceName: 'srv', active: true, problem: '', underWay: '' }])
    t.true((seen.trackedVolumes[0].metadataUsedBytes ?? 0) > 0)
    t.deepEqual(seen.lvm.groups[0].untracked, [])
    t.deepEqual(
      seen.findings.filter(({ about }) => about === 'srv').map(({ severity, kind }) => [severity, kind]),
      [['warning', 'tracked-metadata-snapshot-foreign']]
    )
    const { value } = await metricsPage()
    const [, total] = /^0 \d+ era \d+ \d+\/(\d+) /.exec(run('dmsetup', ['status', 'srv'])) ?? []
    t.is(value('deltamapper_era_metadata_bytes{volume="srv"}'), Number(total) * 4096)
    // A held metadata snapshot makes each commit take new blocks, so that no two looks need agree.
    const used = value('deltamapper_era_metadata_used_bytes{volume="srv"}') ?? 0
    t.true(used >= 4096 && used < Number(total) * 4096, `${used} bytes`)
    for (const [name, is] of Object.entries({ active: 1, suspended: 0, problem: 0, history_lost: 0 })) {
      t.is(value(`deltamapper_era_${name}{volume="srv"}`), is, name)
    }
    sendMessage('srv', 'drop_metadata_snap')
    await admin.deactivateEra({ volume: 'srv', atShutdown: false })
    const after = await asked()
    t.like(finding(after, 'tracked-inactive'), { severity: 'problem', command: 'deltamapper era activate srv' })
    t.deepEqual(after.lvm.groups[0].untracked, [])
    await admin.detachEra({ volume: 'srv' })
  }
)

test.serial('for people', async (t) => {
  const { stdout, status } = await runCommand(['doctor', '--endpoint', agent.address], { env: process.env })
  t.is(status, 1)
  t.regex(stdout, /^POOL +KIND +STATE +DATA +METADATA +VOLUMES +METADATA SNAPSHOT$/m)
  t.regex(stdout, /^vg-0\/pool +lvm +read-write /m)
  t.regex(stdout, /^ +\$ lvchange -ay -K vg-0\/cold$/m)
  t.regex(stdout, /\nthere are problems: \d+ problems, \d+ warnings?, \d+ notes?\n$/)
  for (const line of stdout.split('\n')) t.log(line)
})

/** The agent's metrics page, and the value of a series on it. */
async function metricsPage() {
  const page = await (await fetch('http://127.0.0.1:8081/metrics')).text()
  const value = (series: string) => {
    const line = page.split('\n').find((each) => each.startsWith(`${series} `))
    return line === undefined ? undefined : Number(line.split(' ').at(-1))
  }
  return { page, value }
}

test.serial('the dashboard asks a real agent for nothing that it does not tell', async (t) => {
  const { page } = await metricsPage()
  const told = new Set([...page.matchAll(/^# TYPE (\S+) /gm)].map(([, name]) => name))
  const { panels } = JSON.parse(
    readFileSync(new URL('../../deploy/observability/dashboard.json', import.meta.url), 'utf8')
  ) as {
    panels: { targets?: { expr: string }[] }[]
  }
  const asked = panels.flatMap(({ targets = [] }) =>
    targets.flatMap(({ expr }) => [...expr.matchAll(/\b(deltamapper_\w+)\{(?:[^}]*)\}/g)].map(([, name = '']) => name))
  )
  const missing = asked.filter((name) => !told.has(name.replace(/_(bucket|count|sum)$/, '')) && !told.has(name))
  t.true(asked.length > 30)
  // A router's, those of TLS, and of an agent that checks its answers.
  t.deepEqual(
    missing.filter((name) => !/^deltamapper_(router_\w+|certificate_\w+|engine_checks_total)$/.test(name)),
    []
  )
})

test.serial('metrics have every active pool as the kernel has it, and the catalog', async (t) => {
  const { page, value } = await metricsPage()
  const active = run('dmsetup', ['status', '--noflush', '--target', 'thin-pool']).trim().split('\n')
  t.true(active.length >= 2, active.join('; '))
  for (const line of active) {
    const [, pool, used, total] = /^(\S+): \d+ \d+ thin-pool \d+ (\d+)\/(\d+) /.exec(line) ?? []
    if (pool === undefined) continue
    t.is(value(`deltamapper_pool_metadata_bytes{pool="${pool}"}`), Number(total) * 4096)
    t.is(value(`deltamapper_pool_metadata_used_bytes{pool="${pool}"}`), Number(used) * 4096)
    t.true(Number(value(`deltamapper_pool_data_bytes{pool="${pool}"}`)) > 0)
    t.true(page.includes(`deltamapper_pool_state{pool="${pool}",state="`))
  }
  t.true(Number(value('deltamapper_catalog_bytes')) > 0)
  t.is(value('deltamapper_leases_held'), 0)
  t.is(value('deltamapper_ready'), 1)
})
