/**
 * How LVM is asked, with programs that stand for it: what they are given, how many run, and what becomes of their answers. The real
 * one is asked in test/kernel/lvm.test.ts.
 */
import { execFile } from 'node:child_process'
import { chmodSync, copyFileSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import test from 'ava'
import { DeltamapperError } from '../../../src/errors.ts'
import { LvmReporter } from '../../../src/agent/lvm/report.ts'
import { recordedReports } from '../../support/recorded-lvm.ts'
import { testFolder } from '../../support/test-folder.ts'

const folder = testFolder(test)
const [{ text: volumes }] = recordedReports('volumes')
const [{ text: groups }] = recordedReports('group')

let count = 0
/** A program that does what a bash script says; `$log` is a file for it to write to, `$report` an LVM report to print. */
function program(script: string, report = volumes): { path: string; log: () => string[]; report: string } {
  const path = join(folder, `lvm-${count++}`)
  writeFileSync(`${path}.report`, report)
  writeFileSync(`${path}.log`, '')
  writeFileSync(path, `#!/bin/bash\nlog=${path}.log; report=${path}.report\n${script}\n`)
  chmodSync(path, 0o755)
  return {
    path,
    log: () => readFileSync(`${path}.log`, 'utf8').split('\n').slice(0, -1),
    report: `${path}.report`
  }
}

async function failure(promise: Promise<unknown>): Promise<DeltamapperError> {
  const error: unknown = await promise.then(
    (result) => new Error(`it succeeded: ${JSON.stringify(result)}`),
    (thrown: unknown) => thrown
  )
  if (error instanceof DeltamapperError) return error
  throw error
}

test('LVM is asked for a whole group, read-only, in bytes', async (t) => {
  const { path, log } = program('printf "%s\\n" "$@" >"$log"; cat "$report"')
  const found = await new LvmReporter({ command: [path] }).logicalVolumes('my-vg')
  t.true(found!.some(({ name }) => name === 'monday'))
  const words = log()
  t.is(words[0], 'lvs')
  for (const word of ['--all', '--readonly', '--nosuffix']) t.true(words.includes(word), word)
  t.is(words[words.indexOf('--units') + 1], 'b')
  t.is(words[words.indexOf('--reportformat') + 1], 'json')
  t.regex(words[words.indexOf('--options') + 1], /(^|,)thin_id(,|$)/)
  t.deepEqual(words.slice(-2), ['--', 'my-vg'])
  // Only one `--config` is taken.
  t.is(words.filter((word) => word === '--config').length, 1)
  const settings = words[words.indexOf('--config') + 1]
  for (const each of ['prefixes=0', 'quoted=1', 'report_command_log=0', 'command_names=0', 'prefix="  "', 'test=0']) {
    t.true(settings?.includes(each), each)
  }
})

test('volume groups, in the other dialect', async (t) => {
  const standard = recordedReports('group').find(({ dialect }) => dialect === 'json_std')!.text
  const { path, log } = program('printf "%s\\n" "$@" >"$log"; cat "$report"', standard)
  const [group] = await new LvmReporter({ command: [path], format: 'json_std' }).volumeGroups()
  t.is(group.name, 'my-vg')
  t.is(log()[0], 'vgs')
  t.is(log()[log().indexOf('--reportformat') + 1], 'json_std')
})

test('the command line can be several words', async (t) => {
  const { path, log } = program('printf "%s\\n" "$LC_ALL" "$@" >"$log"; cat "$report"')
  await new LvmReporter({ command: ['env', 'A=two words', path, '--first'] }).logicalVolumes('my-vg')
  t.deepEqual(log().slice(0, 3), ['C', '--first', 'lvs'])
  t.throws(() => new LvmReporter({ command: [] }), { instanceOf: DeltamapperError })
})

test('turns go round those who wait: who asks about many groups waits behind its own questions', async (t) => {
  const { path, log } = program('echo "${@: -1}" >>"$log"; cat "$report"')
  const lvm = new LvmReporter({ command: [path] })
  const many = Array.from({ length: 20 }, (_, i) => lvm.logicalVolumes(`no-such-group-${i}`, 'flood'))
  const others = ['b', 'c', 'b'].map((client, i) => lvm.logicalVolumes(`of-${client}-${i}`, client))
  await Promise.all([...many, ...others])
  const asked = log()
  t.is(asked.length, 23)
  t.deepEqual(asked.slice(0, 6), [
    ...['no-such-group-0', 'of-b-0', 'of-c-1'],
    ...['no-such-group-1', 'of-b-2', 'no-such-group-2']
  ])
})

test('a group that is not there is no failure; what else exit status 5 means is one', async (t) => {
  const missing = program(`echo '  Volume group "my-vg" not found' >&2; echo '  Cannot process' >&2; exit 5`)
  t.is(await new LvmReporter({ command: [missing.path] }).logicalVolumes('my-vg'), undefined)
  const talkative = program(`yes chatter | head -n 100000 >&2
    echo '15:45:06.579994 lvs[1305] toollib.c:99  Volume group "my-vg" not found' >&2; echo '  Freeing' >&2; exit 5`)
  t.is(await new LvmReporter({ command: [talkative.path] }).logicalVolumes('my-vg'), undefined)
  const other = program(`echo '  Volume group "other" not found' >&2; exit 5`)
  t.is((await failure(new LvmReporter({ command: [other.path] }).logicalVolumes('my-vg'))).code, 'DM_LVM_FAILED')

  const exported = program('echo "  Volume group my-vg is exported" >&2; exit 5')
  const error = await failure(new LvmReporter({ command: [exported.path] }).logicalVolumes('my-vg'))
  t.is(error.code, 'DM_LVM_FAILED')
  t.regex(error.line, /lvs my-vg` ended with exit status 5: Volume group my-vg is exported; put right/)

  const old = program('echo "  Invalid argument for --reportformat: json_std" >&2; exit 3')
  t.regex(
    (await failure(new LvmReporter({ command: [old.path] }).logicalVolumes('v'))).line,
    /status 3.*; this LVM does/
  )
  const silent = program('kill -KILL $$')
  t.regex((await failure(new LvmReporter({ command: [silent.path] }).logicalVolumes('v'))).line, /status 137: without/)
})

test('warnings beside a good report do no harm, and a spoilt report is refused', async (t) => {
  const warning = program('echo "  WARNING: VG my-vg is missing PV" >&2; cat "$report"')
  t.true((await new LvmReporter({ command: [warning.path] }).logicalVolumes('my-vg'))!.length > 25)
  const spoilt = program('echo "  WARNING: on stdout"; cat "$report"')
  t.is((await failure(new LvmReporter({ command: [spoilt.path] }).logicalVolumes('my-vg'))).code, 'DM_LVM_FAILED')
})

test('hostile names never reach a command line', async (t) => {
  const { path, log } = program('echo run >>"$log"; cat "$report"')
  const reporter = new LvmReporter({ command: [path] })
  const names = ['', '.', '..', '-a', '--config=x', 'a/b', '../..', 'a b', 'a;b', '$(id)', '@tag', 'ä', 'a\0', 'a\n']
  for (const name of [...names, 'a'.repeat(128)]) {
    t.is((await failure(reporter.logicalVolumes(name))).code, 'DM_ARGUMENT_INVALID', JSON.stringify(name))
  }
  t.deepEqual(log(), [])
  for (const name of ['a', 'a'.repeat(127), '+_.-', '.a']) await reporter.logicalVolumes(name)
  t.is(log().length, 4)
})

test('one command at a time, in the order in which they were asked for', async (t) => {
  const { path, log } = program(
    'echo "start ${@: -1}" >>"$log"; sleep 0.1; echo "end ${@: -1}" >>"$log"; cat "$report"'
  )
  const reporter = new LvmReporter({ command: [path] })
  const names = ['a', 'b', 'c', 'd']
  await Promise.all(names.map((name) => reporter.logicalVolumes(name)))
  t.deepEqual(
    log(),
    names.flatMap((name) => [`start ${name}`, `end ${name}`])
  )
})

test('who asks the same shares an answer that has not begun, and never one that has', async (t) => {
  const { path, log, report } = program('echo run >>"$log"; cat "$report"; sleep 0.4', '{"report":[{"lv":[]}]}')
  const reporter = new LvmReporter({ command: [path] })
  const first = reporter.logicalVolumes('my-vg')
  while (log().length === 0) await sleep(10)
  await sleep(100)
  // What the first one reads is read; now a snapshot is taken.
  copyFileSync(`${path}.report`, `${path}.old`)
  writeFileSync(report, volumes)
  const rest = Array.from({ length: 20 }, () => reporter.logicalVolumes('my-vg'))
  t.deepEqual(await first, [])
  for (const each of await Promise.all(rest)) t.true(each!.some(({ name }) => name === 'monday'))
  t.is(log().length, 2)
})

test('a slow LVM is given up in time, and the next question is asked', async (t) => {
  const { path, log } = program('echo run >>"$log"; [ "$1" = vgs ] && exec cat "$report"; sleep 60', groups)
  const reporter = new LvmReporter({ command: [path], deadlineMs: 5000 })
  const slow = failure(reporter.logicalVolumes('my-vg'))
  // It waits for its turn.
  await sleep(4000)
  const next = reporter.volumeGroups().catch(() => undefined)
  // (Finding out what LVM has to leave alone is a part of it.)
  t.regex((await slow).line, /lvs my-vg` was not done after [1-5]\.\d s and was killed/)
  // Where the machine was too busy for a shell in what is left of its deadline, it is asked again.
  let answered = await next
  while (answered === undefined) answered = await reporter.volumeGroups().catch(() => undefined)
  t.is(answered.length, 1)
  t.true(log().length >= 2)
})

test('behind an LVM that cannot be killed nothing is started, and nobody waits for ever', async (t) => {
  t.timeout(300_000)
  // It leaves its process group, as good as a process that hangs in the kernel, until the test lets it go.
  const { path, log, report } = program(
    'export report; echo run >>"$log"; [ "$1" = vgs ] && exec cat "$report"\n' +
      'exec setsid --fork bash -c \'until [ -e "$report.go" ]; do sleep 0.1; done\'',
    groups
  )
  const reporter = new LvmReporter({ command: [path], deadlineMs: 4000 })
  await failure(reporter.logicalVolumes('my-vg'))
  const errors = await Promise.all([1, 2, 3].map(() => failure(reporter.volumeGroups())))
  for (const error of errors) t.regex(error.line, /vgs` has not had its turn.*lvs my-vg` \(process group \d+\)/)
  t.deepEqual(log(), ['run'])
  writeFileSync(`${report}.go`, '')
  let found
  while (found === undefined) found = await reporter.volumeGroups().catch(() => undefined)
  t.is(found.length, 1)
  t.deepEqual(log(), ['run', 'run'])
})

test('a missing LVM is said so, every time', async (t) => {
  const reporter = new LvmReporter({ command: [join(folder, 'none')] })
  for (let times = 0; times < 3; times++) {
    t.regex((await failure(reporter.logicalVolumes('my-vg'))).line, /could not be started.*install lvm2/)
  }
})

test('where descriptors have run out, nobody is told to install LVM', async (t) => {
  const command = new URL('../../../src/agent/lvm/command.ts', import.meta.url).href
  const script = `
    import { openSync } from 'node:fs'
    const { startCommand } = await import(${JSON.stringify(command)})
    startCommand(['true'], { deadlineMs: 5000, maxOutputBytes: 1 }).result.catch(() => undefined)
    try { for (;;) openSync('/dev/null') } catch {}
    await startCommand(['true'], { deadlineMs: 5000, maxOutputBytes: 1 }, 'lvm lvs').result.catch((error) => console.log(error.line))`
  const node = [process.execPath, '--input-type=module', '--eval', script]
  const { stdout: said } = await promisify(execFile)('bash', ['-c', 'ulimit -n 64; exec "$@"', 'bash', ...node])
  t.regex(
    said,
    /^DM_SYSTEM_REFUSED: `lvm lvs` could not be started \(.*EMFILE.*raise how many files this process may open/
  )
  t.notRegex(said, /install/)
})

const groupId = '5sISpc-X6u6-DK1j-tfSU-37qZ-V0jE-80uScK'

test("a disk's metadata may be newer than the report, and not older", async (t) => {
  const report = {
    ...{ vg_uuid: groupId, vg_name: 'my-vg', vg_attr: 'wz--n-', vg_size: '1', vg_free: '0', vg_extent_size: '4096' },
    ...{ vg_seqno: '7', lv_count: '0', vg_missing_pv_count: '0', vg_exported: '', vg_partial: '', vg_shared: '' },
    ...{ vg_systemid: '', vg_tags: '', pv_name: '/dev/sda', pv_uuid: 'disk-id', pv_mda_used_count: '1' }
  }
  const text = JSON.stringify({ report: [{ vg: [report] }] })
  const linksOf = async (state: number, id = groupId) => {
    const metadata = `my-vg {\nid = "${id}"\nseqno = ${state}\nextent_size = 8\n}`
    const { path } = program(`if [ $1 = vgs ]; then cat "$report"; else echo '${metadata}'; fi`, text)
    return new LvmReporter({ command: [path] }).snapshotLinks('my-vg')
  }
  for (const state of [7, 8]) t.is((await linksOf(state))?.sequenceNumber, BigInt(state))
  t.is((await failure(linksOf(6))).code, 'DM_LVM_FAILED')
  t.is((await failure(linksOf(8, groupId.replace('5', '6')))).code, 'DM_LVM_FAILED')
})
