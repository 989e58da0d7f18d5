/**
 * What README.md and docs/hosts.md say of running the agent on a host, done: the very commands, in the order in which they stand
 * there, in one shell, on volumes like those they name, and with writes in between. Runs inside the kernel lab:
 * node test/lab/run.ts test/kernel/host-instructions.test.ts
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Readable, Writable } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import test from 'ava'
import { projectFolder } from '../lab/packages.ts'
import { createDevice, createLinear, run, sendMessage, thinPoolTable, thinTable, zeroStart } from './dmsetup.ts'
import { createGroup, createPool, createThin, lvm, prepareLvm, writeBlocks } from './lvm-setup.ts'

const mebibyte = 2 ** 20
const blockBytes = 65536
const readme = readFileSync(join(projectFolder, 'README.md'), 'utf8')
const hosts = readFileSync(join(projectFolder, 'docs/hosts.md'), 'utf8')

/** The commands below a heading, as far as the next one of the same rank. */
function commands(page: string, heading: string): string[] {
  const [, rank] = /^(#+) /.exec(heading) ?? []
  const from = page.indexOf(`\n${heading}\n`)
  if (rank === undefined || from < 0) throw new Error(`there is no heading ${heading}`)
  const section = page.slice(from + 1)
  const next = section.search(new RegExp(`\\n#{1,${rank.length}} `))
  return [...section.slice(0, next).matchAll(/```sh\n(.*?)```/gs)].map(([, block = '']) => block)
}

/** With job control, as a person has it, who would also see that a command has failed, whichever it is. */
const terminalScript = `
set -m -E -o pipefail
trap 'echo "@@ failed: $BASH_COMMAND"' ERR
while IFS= read -r -d '' -u 3 block; do eval "$block"; done`

/** A shell that is typed into. */
class Terminal {
  readonly #shell: ChildProcess
  #output = ''
  #typed = 0

  constructor() {
    // As if it were installed, too.
    const bin = mkdtempSync(join(tmpdir(), 'bin-'))
    symlinkSync(join(projectFolder, 'bin/deltamapper.js'), join(bin, 'deltamapper'))
    const path = [bin, join(projectFolder, 'node_modules/.bin'), process.env.PATH].join(':')
    this.#shell = spawn('bash', ['-c', terminalScript], {
      env: { ...process.env, PATH: path },
      cwd: projectFolder,
      stdio: ['ignore', 'pipe', 'pipe', 'pipe']
    })
    for (const stream of this.#shell.stdio.slice(1, 3) as Readable[]) {
      stream.setEncoding('utf8').on('data', (text: string) => (this.#output += text))
    }
  }

  /** Returns what appears until the commands are done. Throws when one of them fails. */
  async type(block: string): Promise<string> {
    this.#output = ''
    const end = `@@ done ${++this.#typed}\n`
    ;(this.#shell.stdio[3] as Writable).write(`${block}\necho "${end.trim()}"\0`)
    while (!this.#output.includes(end)) {
      if (this.#shell.exitCode !== null) throw new Error(`the shell has ended: ${this.#output}`)
      await sleep(20)
    }
    if (this.#output.includes('@@ failed')) throw new Error(this.#output)
    return this.#output.slice(0, this.#output.indexOf(end))
  }

  close(): void {
    this.#shell.kill('SIGKILL')
    for (const each of this.#shell.stdio) each?.destroy()
  }
}

/** What npx does once it has found the command. */
const npxAlone = 'npx() { "$@"; }'
const hasNpx = () => run('bash', ['-c', 'type -P npx || true']) !== ''

let terminal: Terminal

test.before(() => {
  // What the instructions write is not to land in this machine's own folders.
  for (const folder of ['/var/lib', '/srv']) run('mount', ['-t', 'tmpfs', 'tmpfs', folder])
  prepareLvm()
  // The end of the disk is for pools without LVM.
  lvm('pvcreate', '--setphysicalvolumesize', '512m', '/dev/ubda')
  createGroup('vg0', '/dev/ubda')
  createPool('vg0', 'pool', 256)
  // (It has LVM's configuration from this process.)
  terminal = new Terminal()
})

test.after.always(() => {
  terminal.close()
})

test('README, on a host with LVM', async (t) => {
  const home = createThin('vg0', 'pool', 'home', 64)
  writeBlocks(home, 0, 40, 'a')
  const [start, full, incremental, ...more] = commands(readme, '### On a host with LVM')
  t.deepEqual(more, [])
  // (npm is of the machine's system; a release of the lab has none.)
  if (!hasNpx()) await terminal.type(npxAlone)
  await terminal.type(start)
  for (let i = 0; !existsSync('/run/deltamapper/agent.sock') && i < 600; i++) await sleep(50)
  // npm takes longer to start than all else, and has found the command.
  await terminal.type(npxAlone)
  t.deepEqual(extents(await terminal.type(full)), [[0, 40]])
  writeBlocks(home, 7, 2, 'b')
  writeBlocks(home, 100, 5, 'b')
  t.deepEqual(extents(await terminal.type(incremental)), [
    [7, 2],
    [100, 5]
  ])
})

test('README, with a plain dmsetup pool', async (t) => {
  const metadataDevice = createLinear('readme-metadata', '/dev/ubda', 600 * mebibyte, 4 * mebibyte)
  const dataBytes = 64 * mebibyte
  const dataDevice = createLinear('readme-data', '/dev/ubda', 604 * mebibyte, dataBytes)
  zeroStart(metadataDevice)
  createDevice('pool', thinPoolTable({ metadataDevice, dataDevice, dataBytes, blockBytes }))
  sendMessage('pool', 'create_thin 0')
  const volume = createDevice('volume', thinTable('pool', 0, 32 * mebibyte))
  writeBlocks(volume, 3, 10, 'a')
  const [full, incremental, ...more] = commands(readme, '### With a plain dmsetup pool')
  t.deepEqual(more, [])
  t.deepEqual(extents(await terminal.type(full)), [[3, 10]])
  writeBlocks(volume, 12, 3, 'b')
  t.deepEqual(extents(await terminal.type(incremental)), [[12, 3]])
})

test('hosts.md, a backup with nothing but a shell', async (t) => {
  const mail = createThin('vg0', 'pool', 'mail', 96)
  const folder = mountNew(mail, 'mail')
  writeFileSync(join(folder, 'inbox'), randomBytes(12 * mebibyte))
  const [ask, full, incremental, ...more] = commands(hosts, '### A backup with nothing but a shell')
  t.deepEqual(more, [])
  await terminal.type(ask)
  // It is not the moment of copying that counts.
  writeFileSync(join(folder, 'letter'), randomBytes(mebibyte))
  await terminal.type(full)
  // What was refused, or cut off, is no answer, and everything after it is not done.
  const cutOff = 'head -n 2 /srv/backup/mail-1.ndjson >/srv/backup/cut-off.ndjson'
  const tried = 'if copy_extents $answer /dev/zero /srv/backup/mail.img; then echo copied; else echo refused; fi'
  for (const answer of ['/dev/null', '/srv/backup/cut-off.ndjson']) {
    t.regex(await terminal.type(`${cutOff}; answer=${answer}; ${tried}`), /is not complete\nrefused\n$/)
  }
  rmSync(join(folder, 'inbox'))
  run('sync', ['-f', folder])
  run('fstrim', [folder])
  lvm('lvextend', '--size', '128m', 'vg0/mail')
  await terminal.type(incremental)
  // cmp has compared the rest, and there was something to compare.
  t.is(statSync('/srv/backup/mail.img').size, 128 * mebibyte)
  t.regex(readFileSync('/srv/backup/mail-2.ndjson', 'utf8'), /"complete":true,"extents":[1-9]/)
  t.throws(() => lvm('lvs', 'vg0/mail-1'))
})

test('hosts.md, with a plain dmsetup pool', async (t) => {
  createLinear('operations-metadata', '/dev/ubda', 700 * mebibyte, 4 * mebibyte)
  createLinear('operations-data', '/dev/ubda', 704 * mebibyte, 256 * mebibyte)
  symlinkSync('/dev/mapper/operations-metadata', '/dev/sdb1')
  symlinkSync('/dev/mapper/operations-data', '/dev/sdb2')
  const [create, full, incremental, ...more] = commands(hosts, '## With a plain dmsetup pool')
  t.deepEqual(more, [])
  await terminal.type(create)
  const folder = join('/run/mnt', 'tank')
  mkdirSync(folder)
  run('mount', ['/dev/mapper/tank-data', folder])
  writeFileSync(join(folder, 'one'), randomBytes(8 * mebibyte))
  await terminal.type(full)
  writeFileSync(join(folder, 'two'), randomBytes(3 * mebibyte))
  await terminal.type(incremental)
  t.is(statSync('/srv/backup/tank.img').size, 256 * mebibyte)
  t.regex(readFileSync('/srv/backup/tank-2.ndjson', 'utf8'), /"complete":true,"extents":[1-9]/)
  t.false(existsSync('/dev/mapper/tank-1'))
})

test('the agent ends when its job is ended', async (t) => {
  await terminal.type('kill %1; wait %1 || [ $? = 143 ]')
  // (npx, which started it, ends a little earlier.)
  for (let i = 0; existsSync('/run/deltamapper/agent.sock') && i < 200; i++) await sleep(50)
  t.false(existsSync('/run/deltamapper/agent.sock'))
})

function mountNew(device: string, name: string): string {
  const folder = join('/run/mnt', name)
  mkdirSync(folder)
  run('mkfs.ext4', ['-q', device])
  run('mount', [device, folder])
  return folder
}

/** The table that `allocated` and `delta` print, in blocks: first, count. */
function extents(table: string): [number, number][] {
  if (!/; complete$/m.test(table)) throw new Error(`not complete: ${table}`)
  return [...table.matchAll(/^ +(\d+) +(\d+) +[\d.]+ [KMGT]?i?B$/gm)].map(([, offset, size]) => [
    Number(offset) / blockBytes,
    Number(size) / blockBytes
  ])
}
