/**
 * Lives in which blocks of a tracked volume change and no era says so: between two looks of the agent's, while the volume is not active, after a
 * crash, in another boot. Whatever happens between two snapshots, every block that differs is in the answer, or there is none. And lives in which
 * nothing happens beside the volume, whose history has to go on.
 *
 * Another boot is one whose identity the kernel names otherwise, and in which the devices have just appeared. Whole kernels are booted in
 * test/lab/era-restarts.test.ts. Runs inside the kernel lab: node test/lab/run.ts test/kernel/missed-blocks-era-looks.test.ts
 */
import { randomFillSync, randomUUID } from 'node:crypto'
import { closeSync, constants, fsyncSync, mkdtempSync, openSync, writeFileSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import { DeviceMapper } from '../../native/device-mapper.ts'
import type { Catalog } from '../../src/agent/catalog/catalog.ts'
import { DeltamapperError } from '../../src/errors.ts'
import type { Random } from '../support/random.ts'
import { blockFingerprints } from './block-fingerprints.ts'
import { alignedBuffer, reloadDevice, removeDevice, run } from './dmsetup.ts'
import { EraAnswers, recorderOf } from './era-answers.ts'
import { blockBytes, type Driver, labCatalog, loopDisk, mebibyte, startDriver } from './era-lab.ts'
import { labRun } from './lab-run.ts'
import { createGroup, createThick, lvm, prepareLvm, shrink } from './lvm-setup.ts'

run('/run/modprobe', ['dm-era'])
prepareLvm({ mapped: true })
const deviceMapper = new DeviceMapper()
const answers = new EraAnswers(deviceMapper)
test.after.always(async () => {
  await answers.close()
  await deviceMapper.close()
})

const volume = 'looked'
const upper = `/dev/mapper/${volume}`
const lower = '/dev/vgw/data'
const metadata = '/dev/vgw/notes'
const MOST_MEBIBYTES = 48
const buffer = alignedBuffer(4096)

/** What this kernel is to be called from now on. */
const bootFile = join(mkdtempSync(join(tmpdir(), 'boot-')), 'boot_id')
function newBoot(): void {
  writeFileSync(bootFile, `${randomUUID()}\n`)
}
newBoot()
run('mount', ['--bind', bootFile, '/proc/sys/kernel/random/boot_id'])

class Machine {
  readonly random: Random
  readonly #t: ExecutionContext
  #catalog: Catalog
  #driver: Driver | undefined
  #snapshots = 0
  mebibytes = 16
  /** What the next snapshot is compared with. */
  base: Snapshot | undefined

  constructor(t: ExecutionContext, random: Random, catalog: Catalog) {
    this.#t = t
    this.random = random
    this.#catalog = catalog
    createGroup('vgw', loopDisk(96).path)
    createThick('vgw', 'data', this.mebibytes)
    createThick('vgw', 'notes', 4)
  }

  get volumes() {
    if (!this.#driver) throw new Error('no agent')
    return this.#driver.volumes
  }

  get blocks(): number {
    return (this.mebibytes * mebibyte) / blockBytes
  }

  async startAgent({ trustRestarts = false } = {}): Promise<void> {
    await this.stopAgent()
    const recorder = recorderOf(this.#catalog, deviceMapper)
    const commands = { [volume]: { take: ['true'], remove: ['true'] } }
    this.#driver = await startDriver(this.#catalog, deviceMapper, { recorder, commands, trustRestarts })
  }

  async stopAgent(): Promise<void> {
    await this.#driver?.[Symbol.asyncDispose]()
    this.#driver = undefined
  }

  async attach(): Promise<void> {
    await this.volumes.attachEra({
      ...{ name: volume, dataDevice: lower, metadataDevice: metadata, blockBytes },
      ...{ snapshotSize: '', allowLossyKernel: false }
    })
  }

  activate = () => this.volumes.activateEra({ volume, startOver: false })
  deactivate = (atShutdown = false) => this.volumes.deactivateEra({ volume, atShutdown })

  /** Some blocks somewhere, of what was never there before; beyond the first MiB, so that no look at the beginning shows it. */
  write(device: string, { from = 16, to = this.blocks, count = this.random.integer(1, 6), cached = false } = {}): void {
    const file = openSync(device, constants.O_WRONLY | (cached ? 0 : constants.O_DIRECT))
    try {
      for (let i = 0; i < count; i++) {
        randomFillSync(buffer)
        writeSync(file, buffer, 0, buffer.length, this.random.integer(from, to - 1) * blockBytes)
      }
      if (!cached) fsyncSync(file)
    } finally {
      closeSync(file)
    }
  }

  /** Another boot, whoever ended the last one, of a machine that boots nothing else. */
  async trustedBoot(): Promise<void> {
    this.boot()
    await this.startAgent({ trustRestarts: true })
    await this.activate()
    await this.startAgent()
  }

  /** The devices as another kernel finds them. */
  boot(): void {
    lvm('vgchange', '--activate', 'n', 'vgw')
    newBoot()
    lvm('vgchange', '--activate', 'y', 'vgw')
  }

  /** Without a word to anybody. What was written is on the disk, as it is after a crash. */
  removeDevices(): void {
    for (const each of [volume, `${volume}-guard`]) removeDevice(each)
  }

  /** Puts other tables into place, and then what was there before. */
  exchange(device: string, ...others: string[]): void {
    const table = run('dmsetup', ['table', device]).trim()
    for (const each of [...others, table]) reloadDevice(device, each)
  }

  /** The next snapshot, and what it has; where the history was found to be void, in the new line. */
  async snapshot() {
    const name = `s${++this.#snapshots}`
    const take = () => this.volumes.createEraSnapshot({ volume, name, deadlineMs: 0 })
    const { line } = await take().catch((error: unknown) => {
      if (error instanceof DeltamapperError && error.code === 'DM_ERA_HISTORY_LOST') return take()
      throw error
    })
    return { name, line, content: blockFingerprints(lower, blockBytes) }
  }

  /** How many blocks differ, of which all were in the answer; or the code that there is instead. @throws where one is missing */
  async compare(base: Snapshot, target: Snapshot, context: string): Promise<number | string> {
    const asked = answers.delta(this.#catalog, `${volume}/${base.name}`, `${volume}/${target.name}`)
    const answer = await asked.catch((error: unknown) => {
      if (error instanceof DeltamapperError) return error.code
      throw error
    })
    if (typeof answer === 'string') return answer
    const differ = target.content.flatMap((is, block) => (is === base.content[block] ? [] : [block]))
    const missed = differ.filter(
      (block) => !answer.some(([at, size]) => at <= block * blockBytes && at + size >= (block + 1) * blockBytes)
    )
    this.#t.deepEqual(missed, [], `${context}: missed`)
    return differ.length
  }

  async lineBecause(): Promise<string> {
    return (await this.volumes.listEra({ volume })).volumes[0]?.lineBecause ?? ''
  }
}

type Snapshot = Awaited<ReturnType<Machine['snapshot']>>
type Life = (machine: Machine) => Promise<unknown>

const sectors = (machine: Machine, share = 1) => (machine.mebibytes * 2048) / share
const eraTable = (length: number) => {
  const [, , , notes = '', guard = '', blockSectors = ''] = run('dmsetup', ['table', volume]).trim().split(' ')
  return `0 ${length} era ${notes} ${guard} ${blockSectors}`
}
/** A whole life without the volume's being active: a rescue system mounts what is below, and writes. */
const rescue: Life = async (machine) => {
  machine.boot()
  machine.write(lower)
  machine.boot()
}

/** In each, blocks change that no era has; and why the history is void then. */
const missed: Record<string, [RegExp, Life]> = {
  'the era device at half its size, and back': [
    /another program has suspended the volume/,
    async (machine) => {
      machine.write(upper, { from: machine.blocks / 2 })
      machine.exchange(volume, eraTable(sectors(machine, 2)))
    }
  ],
  'another table in place of the era device, written through, and back': [
    /another program has suspended the volume/,
    async (machine) => {
      const table = run('dmsetup', ['table', volume]).trim()
      reloadDevice(volume, `0 ${sectors(machine)} linear /dev/mapper/${volume}-guard 0`)
      machine.write(upper)
      reloadDevice(volume, table)
    }
  ],
  'another table in place of the guard, written through, and back': [
    /let discards through/,
    async (machine) => {
      const half = sectors(machine, 2)
      const table = run('dmsetup', ['table', `${volume}-guard`]).trim()
      reloadDevice(`${volume}-guard`, `0 ${half} linear ${lower} ${half}\n${half} ${half} linear ${lower} 0`)
      machine.write(upper)
      reloadDevice(`${volume}-guard`, table)
    }
  ],
  'smaller for a second time, seen, and back': [
    /another program has suspended the volume|made the volume smaller/,
    async (machine) => {
      const look = async () => {
        const begun = machine.volumes.beginSnapshot({ volume, name: 'look', deadlineMs: 0 })
        const { token } = (await begun.catch(() => undefined)) ?? {}
        if (token !== undefined) await machine.volumes.endSnapshot({ token, reference: '', abandon: true })
      }
      const shrunk = async (share: number) => {
        const whole = eraTable(sectors(machine))
        reloadDevice(volume, eraTable(Math.floor(sectors(machine, share) / 128) * 128))
        await look()
        reloadDevice(volume, whole)
      }
      await shrunk(2)
      machine.base = await machine.snapshot()
      machine.write(upper, { from: Math.ceil(machine.blocks * 0.7) })
      await shrunk(1.5)
    }
  ],
  'a crash, and a rescue system that writes': [
    /the machine stopped while looked was active/,
    async (machine) => {
      machine.removeDevices()
      await rescue(machine)
      await machine.activate()
    }
  ],
  'taken down by hand, written to, and restarted': [
    /the machine stopped while looked was active/,
    async (machine) => {
      machine.removeDevices()
      machine.write(lower)
      machine.boot()
      await machine.activate()
    }
  ],
  'deactivated, written to, and restarted': [
    /not deactivated at the shutdown/,
    async (machine) => {
      await machine.deactivate()
      machine.write(lower)
      machine.boot()
      await machine.activate()
    }
  ],
  'deactivated, written to, and shut down in order': [
    /not deactivated at the shutdown/,
    async (machine) => {
      await machine.deactivate()
      machine.write(lower)
      await machine.deactivate(true)
      machine.boot()
      await machine.activate()
    }
  ],
  'deactivated, and a rescue system that writes': [
    /not deactivated at the shutdown/,
    async (machine) => {
      await machine.deactivate()
      await rescue(machine)
      await machine.activate()
    }
  ],
  'deactivated and activated, and written to in between': [
    /was written to while looked was not active/,
    async (machine) => {
      await machine.deactivate()
      machine.write(lower)
      await machine.activate()
    }
  ],
  'written to beside it, not on the disk yet, and shut down in order': [
    /not deactivated at the shutdown/,
    async (machine) => {
      machine.write(lower, { cached: true })
      await machine.deactivate(true)
      machine.boot()
      await machine.activate()
    }
  ],
  'shut down by hand, written to, and shut down in order': [
    /not deactivated at the shutdown/,
    async (machine) => {
      await machine.deactivate(true)
      machine.write(lower)
      await machine.deactivate(true)
      machine.boot()
      await machine.activate()
    }
  ],
  'shut down in order, not activated in the next boot, and written to': [
    /before this boot/,
    async (machine) => {
      await machine.deactivate(true)
      machine.boot()
      await machine.startAgent()
      machine.write(lower)
      if (machine.random.chance(0.5)) await machine.deactivate(true)
      machine.boot()
      await machine.startAgent()
      await machine.activate()
    }
  ],
  'the data device smaller at a look, and back': [
    /smaller/,
    async (machine) => {
      const half = Math.floor(machine.mebibytes / 2)
      shrink('vgw/data', `${half}m`)
      await machine.snapshot().catch(() => undefined)
      createThick('vgw', 'other', machine.mebibytes - half)
      machine.write('/dev/vgw/other', { to: machine.blocks / 2 })
      lvm('lvremove', 'vgw/other')
      lvm('lvextend', '--size', `${machine.mebibytes}m`, 'vgw/data')
    }
  ],
  'another table in place of the era device, a crash, and somebody vouches': [
    /another program has suspended the volume/,
    async (machine) => {
      const table = run('dmsetup', ['table', volume]).trim()
      reloadDevice(volume, `0 ${sectors(machine)} linear /dev/mapper/${volume}-guard 0`)
      machine.write(upper)
      reloadDevice(volume, table)
      machine.removeDevices()
      await machine.trustedBoot()
    }
  ],
  'another table in place of the era device, shut down in order, and somebody vouches': [
    /no era device any more/,
    async (machine) => {
      reloadDevice(volume, `0 ${sectors(machine)} linear /dev/mapper/${volume}-guard 0`)
      machine.write(upper)
      await machine.deactivate(true)
      await machine.trustedBoot()
    }
  ],
  'the metadata goes back to a snapshot of the same era': [
    /and may have been merged into \/dev\/vgw\/notes/,
    async (machine) => {
      lvm('lvcreate', '--snapshot', '--size', '4m', '--name', 'earlier', 'vgw/notes')
      machine.write(upper)
      await machine.deactivate()
      lvm('lvconvert', '--merge', '--interval', '1', 'vgw/earlier')
      await machine.activate()
    }
  ],
  'the metadata goes back to a copy of the same era': [
    /the metadata in \/dev\/vgw\/notes is not what it was/,
    async (machine) => {
      const back = copyOfMetadata()
      machine.write(upper)
      await machine.deactivate()
      back()
      await machine.activate()
    }
  ],
  'the metadata goes back to a copy of the same era in another boot': [
    /the metadata in \/dev\/vgw\/notes is not what it was/,
    async (machine) => {
      const back = copyOfMetadata()
      machine.write(upper)
      await machine.deactivate(true)
      machine.boot()
      back()
      machine.boot()
      await machine.activate()
    }
  ]
}

/** @returns puts it back */
function copyOfMetadata(): () => void {
  const file = join(mkdtempSync(join(tmpdir(), 'notes-')), 'copy')
  run('dd', [`if=${metadata}`, `of=${file}`, 'bs=64k', 'iflag=direct', 'status=none'])
  return () => run('dd', [`if=${file}`, `of=${metadata}`, 'bs=64k', 'oflag=direct', 'conv=fsync', 'status=none'])
}

/** In these nothing is written but through the volume: the history goes on. */
const kept: Record<string, Life> = {
  'nothing at all': () => Promise.resolve(),
  'deactivated and activated': async (machine) => {
    await machine.deactivate()
    await machine.activate()
  },
  'an orderly shutdown': async (machine) => {
    await machine.deactivate(true)
    machine.boot()
    await machine.activate()
  },
  'deactivated, and an orderly shutdown later': async (machine) => {
    await machine.deactivate()
    await machine.deactivate(true)
    machine.boot()
    await machine.activate()
  },
  'the agent starts anew': (machine) => machine.startAgent(),
  'a snapshot that is given up': async (machine) => {
    const { token } = await machine.volumes.beginSnapshot({ volume, name: 'given-up', deadlineMs: 0 })
    await machine.volumes.endSnapshot({ token, reference: '', abandon: true })
  },
  'it grows': async (machine) => {
    if (machine.mebibytes >= MOST_MEBIBYTES) return
    lvm('lvextend', '--size', `${++machine.mebibytes}m`, 'vgw/data')
    await machine.volumes.growEra({ volume })
  },
  'a crash, where somebody vouches for what was booted': async (machine) => {
    machine.removeDevices()
    await machine.trustedBoot()
  },
  'an orderly shutdown, and another without its being activated in between': async (machine) => {
    await machine.deactivate(true)
    machine.boot()
    await machine.startAgent()
    await machine.deactivate(true)
    machine.boot()
    await machine.startAgent()
    await machine.activate()
  }
}

/** A disk with one partition of 16 MiB. */
function partitionedDisk(): string {
  const { path } = loopDisk(20)
  const table = Buffer.alloc(512)
  // One entry of a DOS partition table: type, first sector, sectors.
  table.writeUInt8(0x83, 446 + 4)
  table.writeUInt32LE(2048, 446 + 8)
  table.writeUInt32LE(16 * 2048, 446 + 12)
  table.writeUInt16LE(0xaa55, 510)
  writeFileSync(path, table, { flag: 'r+' })
  run('partx', ['--add', path])
  return path
}

test.serial('a partition that the kernel has found anew is not what it was', async (t) => {
  const disk = partitionedDisk()
  const part = `${disk}p1`
  const catalog = await labCatalog(t)
  const commands = { parted: { take: ['true'], remove: ['true'] } }
  await using driver = await startDriver(catalog, deviceMapper, {
    recorder: recorderOf(catalog, deviceMapper),
    commands
  })
  const { volumes } = driver
  await volumes.attachEra({
    ...{ name: 'parted', dataDevice: part, metadataDevice: loopDisk(4).path, blockBytes },
    ...{ snapshotSize: '', allowLossyKernel: false }
  })
  const { line } = await volumes.createEraSnapshot({ volume: 'parted', name: 'before', deadlineMs: 0 })
  await volumes.deactivateEra({ volume: 'parted', atShutdown: false })
  run('dd', ['if=/dev/urandom', `of=${part}`, 'bs=64k', 'count=1', 'seek=100', 'oflag=direct', 'status=none'])
  for (const how of ['--delete', '--add']) run('partx', [how, disk])
  const after = await volumes.activateEra({ volume: 'parted', startOver: false })
  t.not(after.line, line)
  t.regex(after.lineBecause, /was itself taken down and put up again/)
  await volumes.detachEra({ volume: 'parted' })
})

test.serial('every block that differs is in the answer, or there is none', async (t) => {
  const { random, count, again } = labRun(3)
  t.timeout(600_000 + count * 120_000)
  const machine = new Machine(t, random, await labCatalog(t))
  await machine.startAgent()
  await machine.attach()
  const found: Record<string, number> = { differing: 0 }
  let deck: string[] = []
  // (What is the target of one round is the base of the next: a snapshot takes longer than most of these lives.)
  machine.base = await machine.snapshot()
  for (let i = 0; i < count; i++) {
    // As many of the one kind as of the other; each before any comes again.
    if (i % 2 === 0 && deck.length === 0) deck = random.shuffle(Object.keys(missed))
    const life = i % 2 === 0 ? (deck.pop() ?? '') : random.pick(Object.keys(kept))
    const context = `${i}, ${life}, ${again}`
    if (random.chance(0.5)) machine.write(upper)
    const [because, live] = missed[life] ?? [undefined, kept[life]]
    await live?.(machine)
    if (random.chance(0.5)) machine.write(upper)
    const target = await machine.snapshot()
    const outcome = await machine.compare(machine.base, target, context)
    if (because) {
      t.is(outcome, 'DM_HISTORY_BROKEN', context)
      t.regex(await machine.lineBecause(), because, context)
    } else {
      t.is(typeof outcome, 'number', `${context}: ${String(outcome)}, ${await machine.lineBecause()}`)
      if (typeof outcome === 'number') found.differing = (found.differing ?? 0) + outcome
    }
    found[life] = (found[life] ?? 0) + 1
    machine.base = target
  }
  t.log(found)
  await machine.volumes.detachEra({ volume })
  await machine.stopAgent()
  lvm('vgremove', '--force', 'vgw')
})
