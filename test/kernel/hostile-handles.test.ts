/**
 * What whoever can reach the socket may write into a handle: everything that names no snapshot is refused with the code that is due, what
 * names another one than it did before is told apart, and no shell is ever started for any of it. Runs inside the kernel lab:
 * node test/lab/run.ts test/kernel/hostile-handles.test.ts
 */
import { execFileSync } from 'node:child_process'
import { chmodSync, copyFileSync, existsSync, mkdtempSync, readFileSync, realpathSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import test from 'ava'
import type { SnapshotMetadataClient } from '../../src/grpc/client.ts'
import { rawCall } from '../grpc/plain-client.ts'
import { framed } from '../support/grpc-frame.ts'
import { answerTo, failure } from './ask.ts'
import { run } from './dmsetup.ts'
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
import { blockBytes, expectedDelta, RawPool } from './raw-pool.ts'

const mebibyte = 2 ** 20
const folder = mkdtempSync(join(tmpdir(), 'hostile-'))
/** What a shell would leave behind if one were started. */
const hacked = '/run/hacked'
const shellsSeen = join(folder, 'shells')
writeFileSync(shellsSeen, '')
/** Words that start a program where it finds no shell. */
const prefix = withoutShells()

let raw: RawPool
let agent: LiveAgent
let client: SnapshotMetadataClient

test.before(async (t) => {
  t.timeout(900_000)
  prepareLvm()
  run('losetup', ['--offset', String(128 * mebibyte), '/dev/loop0', '/dev/ubda'])
  raw = new RawPool({ name: 'raw', offsetBytes: 0, metadataBytes: 4 * mebibyte, dataBytes: 16 * mebibyte })
  raw.createVolume('docs', 0, 64)
  raw.write('docs', 0, 8)
  raw.snapshot('docs', 'docs-mon', 1)
  raw.write('docs', 4, 8)
  raw.snapshot('docs', 'docs-tue', 2)
  const other = { name: 'other', offsetBytes: 32 * mebibyte, metadataBytes: 4 * mebibyte, dataBytes: 16 * mebibyte }
  const second = new RawPool(other)
  second.createVolume('far', 0, 64)
  second.write('far', 0, 8)
  second.snapshot('far', 'far-mon', 1)

  createGroup('hostile', '/dev/loop0')
  createPool('hostile', 'pool', 32)
  writeBlocks(createThin('hostile', 'pool', 'data', 16), 0, 8, 'a')
  createSnapshot('hostile', 'data', 'mon')
  writeBlocks('/dev/hostile/data', 4, 8, 'b')
  createSnapshot('hostile', 'data', 'tue')
  createThin('hostile', 'pool', 'second', 16)
  createSnapshot('hostile', 'second', 'second-mon')
  createThick('hostile', 'thick', 4)

  agent = await LiveAgent.start({ prefix })
  client = agent.client()
  // What an agent tells of its node at the start, it asks a library that starts shells; no handle has a part in that.
  while (!agent.log.some(({ msg }) => msg === 'inventory')) await sleep(50)
})
test.after.always(async () => {
  client?.close()
  await agent?.kill()
})

/**
 * Words to start a program with in a mount namespace of its own, where everything that is a shell only notes that it was started.
 */
function withoutShells(): string[] {
  const shell = join(folder, 'busybox')
  copyFileSync(run('bash', ['-c', 'type -P busybox']).trim(), shell)
  const trap = join(folder, 'trap')
  writeFileSync(trap, `#!${shell} sh\necho "$0 $*" >>${shellsSeen}\nexit 1\n`)
  for (const each of [shell, trap]) chmodSync(each, 0o755)
  const folders = [...(process.env.PATH ?? '').split(':'), '/bin', '/usr/bin', '/usr/local/bin']
  const names = ['sh', 'bash', 'dash', 'ash', 'busybox', 'csh', 'tcsh', 'ksh', 'zsh', 'fish']
  const shells = folders.flatMap((each) => names.map((name) => join(each, name))).filter((each) => existsSync(each))
  const mounts = [...new Set(shells.map((each) => realpathSync(each)))].map((each) => `mount --bind ${trap} ${each}`)
  return ['busybox', 'unshare', '-m', shell, 'sh', '-c', `${mounts.join(' && ')} && exec "$@"`, 'without-shells']
}

const answered = (base: string, target: string) => answerTo(client, { base, target })

test('the trap catches a shell, by whatever path it is called', (t) => {
  const [program = '', ...words] = prefix
  const attempts = ['sh', '/bin/sh', 'bash'].map((shell) => `execFileSync('${shell}', ['-c', 'touch ${hacked}'])`)
  for (const attempt of [...attempts, `execSync('touch ${hacked}')`]) {
    const script = `const { execFileSync, execSync } = require('node:child_process'); ${attempt}`
    t.throws(() => execFileSync(program, [...words, process.execPath, '-e', script], { stdio: 'ignore' }))
    t.regex(readFileSync(shellsSeen, 'utf8'), /sh -c touch/, attempt)
    writeFileSync(shellsSeen, '')
  }
  t.false(existsSync(hacked))
})

test('handles that can be none', async (t) => {
  const handles = [
    ...[
      '/',
      '//',
      'raw',
      'raw/',
      '/docs-mon',
      'raw//docs-mon',
      'raw/docs-mon/',
      '/dev/mapper/docs-mon',
      'raw/docs/mon'
    ],
    ...['../..', '..', './.', 'raw/..', '../raw', 'raw/.', './docs-mon', '../../etc/passwd', 'raw/../other'],
    ...['hostile/mon;rm', 'hostile/mon; rm -rf /', `hostile/$(touch ${hacked})`, `hostile/\`touch ${hacked}\``],
    ...[
      `hostile/mon|touch`,
      'hostile/mon&',
      'hostile/mon>x',
      'hostile/*',
      'hostile/m?n',
      'hostile/mon ',
      ' hostile/mon'
    ],
    ...["hostile/mon'", 'hostile/mon"', 'hostile/mon\\', 'hostile/@tag', 'hostile/%n%s', 'hostile/{mon,tue}', '~/mon'],
    ...[
      'hostile/mon\0',
      'hostile\0/mon',
      '\0',
      'raw/docs-mon\0-tue',
      'hostile/mo\nn',
      'hostile/mon\n',
      'hostile/mon\r\n'
    ],
    ...['hostile/mon\x1b[2J', 'hostile/mon\u202e', 'hostile/mön', 'hostile/mоn', 'hostile/\ud800', 'hostile∕mon'],
    ...[`hostile/${'x'.repeat(121)}`, 'x'.repeat(129), 'x'.repeat(60_000), `${'ö'.repeat(65)}`]
  ]
  for (const handle of handles) {
    const shown = JSON.stringify(handle.slice(0, 140))
    for (const question of [
      client.allocated({ snapshotId: handle }),
      client.delta({ baseSnapshotId: 'raw/docs-mon', targetSnapshotId: handle }),
      client.delta({ baseSnapshotId: handle, targetSnapshotId: 'hostile/tue' })
    ]) {
      const error = await failure(question)
      t.is(error.code, 'DM_HANDLE_INVALID', shown)
      t.is(error.status, 'INVALID_ARGUMENT', shown)
      // Whoever reads it, in a terminal for one, is not to be led astray.
      t.regex(error.message, /^[ -~]{1,500}$/, shown)
    }
  }
  t.is((await failure(client.allocated({ snapshotId: '' }))).code, 'DM_ARGUMENT_MISSING')
  t.is(
    (await failure(client.delta({ baseSnapshotId: '', targetSnapshotId: 'raw/docs-tue' }))).code,
    'DM_ARGUMENT_MISSING'
  )
})

test('bytes that are no text', async (t) => {
  for (const bytes of [
    [0xff, 0xfe],
    [0x72, 0x61, 0x77, 0x2f, 0xc0, 0xae, 0xc0, 0xae],
    [0xed, 0xa0, 0x80]
  ]) {
    const body = framed(Buffer.from([0x0a, bytes.length, ...bytes]))
    const call = rawCall(t, agent.address.replace('unix://', ''), { body })
    await call.closed
    t.true(['3', '13'].includes(String(call.received['grpc-status'])), JSON.stringify(call.received))
  }
})

test('handles of what is not there', async (t) => {
  const handles = [
    ...['raw/gone', 'raw/Docs-mon', 'raw/docs-mo', 'raw/docs-mon.', 'other/docs-mon', 'raw/far-mon', 'docs/docs-mon'],
    ...[
      'gone/mon',
      'hostile/gone',
      'hostile/Mon',
      'hostile/mo',
      'hostile/hostile-mon',
      'hostile-pool/mon',
      'Hostile/mon'
    ],
    ...['hostile/--help', 'hostile/-S', 'hostile/--config', 'hostile/1', `hostile/${'x'.repeat(120)}`, 'raw-metadata/x']
  ]
  for (const handle of handles) {
    t.is((await failure(client.allocated({ snapshotId: handle }))).code, 'DM_SNAPSHOT_NOT_FOUND', handle)
    t.is((await failure(answered(handle, 'raw/docs-tue'))).code, 'DM_SNAPSHOT_NOT_FOUND', handle)
  }
  // What could be taken for an option of LVM's never gets to it.
  for (const handle of ['--help/mon', '-S/mon', '--config/global', '-/-']) {
    t.is((await failure(client.allocated({ snapshotId: handle }))).status, 'INVALID_ARGUMENT', handle)
  }
})

test('handles of what cannot be tracked', async (t) => {
  for (const handle of ['raw/raw', 'raw/raw-metadata', 'raw/thin-1', 'raw/thin-9', 'raw/hostile-thick']) {
    t.is((await failure(client.allocated({ snapshotId: handle }))).code, 'DM_NOT_TRACKED', handle)
  }
  for (const name of ['thick', 'pool', 'pool_tmeta', 'pool_tdata', 'lvol0_pmspare']) {
    t.is((await failure(client.allocated({ snapshotId: `hostile/${name}` }))).code, 'DM_NOT_TRACKED', name)
  }
})

test('snapshots that do not belong together', async (t) => {
  t.deepEqual(await answered('raw/docs-mon', 'raw/docs-tue'), expectedDelta(raw.thin('docs-mon'), raw.thin('docs-tue')))
  t.deepEqual(await answered('hostile/mon', 'hostile/tue'), [[4 * blockBytes, 8 * blockBytes]])
  for (const [base, target, code] of [
    ['other/far-mon', 'raw/docs-tue', 'DM_POOLS_DIFFER'],
    ['hostile/mon', 'raw/docs-tue', 'DM_POOLS_DIFFER'],
    ['raw/docs-mon', 'hostile/tue', 'DM_POOLS_DIFFER'],
    ['hostile/mon', 'hostile/second-mon', 'DM_VOLUMES_DIFFER'],
    ['hostile/tue', 'hostile/mon', 'DM_ORDER_REVERSED'],
    ['raw/docs-tue', 'raw/docs-mon', 'DM_ORDER_REVERSED'],
    ['raw/docs', 'raw/docs-tue', 'DM_BASE_CHANGED']
  ] as const) {
    const error = await failure(answered(base, target))
    t.is(error.code, code, `${base} and ${target}: ${error.message}`)
  }
})

test('a handle, a device and a thin id that now are of another snapshot', async (t) => {
  // With dmsetup: the same name, the same id, and it was taken of another state.
  await client.allocated({ snapshotId: 'raw/docs-mon' })
  raw.remove('docs-mon')
  t.is((await failure(answered('raw/docs-mon', 'raw/docs-tue'))).code, 'DM_SNAPSHOT_NOT_FOUND')
  raw.snapshot('docs', 'docs-mon', 1)
  raw.write('docs', 20, 1)
  raw.snapshot('docs', 'docs-wed', 3)
  t.is((await failure(answered('raw/docs-mon', 'raw/docs-wed'))).code, 'DM_BASE_CHANGED')
  // The other way round: one device id under the name of another.
  raw.deactivate('docs-tue')
  raw.thins.set('docs-tue', raw.thin('docs-wed'))
  raw.activate('docs-tue', { readOnly: true })
  t.is((await failure(answered('raw/docs-tue', 'raw/docs-wed'))).code, 'DM_BASE_CHANGED')

  // LVM gives the highest thin id out again.
  createSnapshot('hostile', 'data', 'wed')
  t.deepEqual(await answered('hostile/tue', 'hostile/wed'), [])
  lvm('lvremove', 'hostile/wed')
  t.is((await failure(answered('hostile/wed', 'hostile/tue'))).code, 'DM_BASE_RECORD_WRITABLE')
  writeBlocks('/dev/hostile/data', 30, 1, 'c')
  createSnapshot('hostile', 'data', 'wed')
  writeBlocks('/dev/hostile/data', 40, 1, 'd')
  createSnapshot('hostile', 'data', 'thu')
  t.is((await failure(answered('hostile/wed', 'hostile/thu'))).code, 'DM_BASE_CHANGED')
  t.deepEqual(await answered('hostile/tue', 'hostile/thu'), [
    [30 * blockBytes, blockBytes],
    [40 * blockBytes, blockBytes]
  ])
})

test('no shell was started, and the agent is well', async (t) => {
  t.is(readFileSync(shellsSeen, 'utf8'), '')
  t.false(existsSync(hacked))
  t.deepEqual(
    agent.log.filter(({ level }) => Number(level) >= 50),
    []
  )
  t.is(await agent.stop(), 0)
})
