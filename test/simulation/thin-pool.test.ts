/** The simulated pool held against Debian's tools: what it writes is intact, and says what the simulation believes that it says. */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import { Random } from '../support/random.ts'
import { testFolder } from '../support/test-folder.ts'
import { thinCheck, thinDump } from '../support/thin-tools.ts'
import { DataDevice, ThinPool } from './kernel/thin-pool.ts'
import { MetadataDisk } from './metadata/disk.ts'

const folder = testFolder(test)
const VOLUME_BLOCKS = 900

interface Life {
  disk: MetadataDisk
  data: DataDevice
  pool: ThinPool
  random: Random
  nextId: number
  version: number
}

function begin(seed: number): Life {
  const disk = new MetadataDisk(700)
  const data = new DataDevice(4000)
  const pool = ThinPool.format(disk, data)
  pool.createThin(0)
  return { disk, data, pool, random: new Random(seed), nextId: 1, version: 1 }
}

/** One thing that a user, or the kernel of its own accord, does. */
function step(life: Life): void {
  const { pool, random } = life
  const ids = pool.ids
  const id = random.pick(ids)
  const [from, length] = [random.integer(0, VOLUME_BLOCKS - 1), random.pick([1, 3, 40, 300])]
  const stride = random.pick([1, 1, 7])
  const each = (act: (block: number) => void) => {
    for (let i = 0; i < length; i++) act((from + i * stride) % VOLUME_BLOCKS)
  }
  switch (random.pick(['write', 'write', 'write', 'discard', 'snap', 'delete', 'slot', 'commit', 'back'] as const)) {
    case 'write':
      return each((block) => pool.write(id, block, life.version++))
    case 'discard':
      return each((block) => {
        pool.discard(id, block)
      })
    case 'snap':
      if (ids.length < 12) pool.createSnap(life.nextId++, id)
      return pool.commitNow()
    case 'delete':
      if (ids.length > 1) pool.delete(id)
      return pool.commitNow()
    case 'slot':
      if (pool.heldRoot === 0) pool.reserve()
      else pool.release()
      return pool.commitNow()
    case 'commit':
      return pool.commitNow()
    case 'back':
      return pool.writeBack(random)
  }
}

async function isAsBelieved(t: ExecutionContext, { disk, pool }: Life, name: string): Promise<void> {
  const path = join(folder, name)
  writeFileSync(path, disk.toBuffer())
  t.is(await thinCheck(path), '')
  const dump = await thinDump(path, { metadataSnapshot: false })
  t.is(dump.time, pool.time)
  t.deepEqual([...dump.devices.keys()], pool.ids)
  for (const [id, device] of dump.devices) {
    const { mappedBlocks, transactionId, creationTime, snapshottedTime } = pool.detailsOf(id)
    t.like(device, { mappedBlocks, transactionId, creationTime, snapshottedTime })
    const content = new Map<number, number>()
    for (const { begin, dataBegin, length } of device.mappings) {
      for (let i = 0; i < length; i++) content.set(begin + i, pool.data.read(dataBegin + i))
    }
    t.is(content.size, mappedBlocks)
    for (let block = 0; block < VOLUME_BLOCKS; block++) {
      if ((content.get(block) ?? 0) !== pool.read(id, block)) return t.fail(`${name}: device ${id} block ${block}`)
    }
  }
}

for (let seed = 1; seed <= 8; seed++) {
  test(`thin_check and thin_dump find what the pool believes it wrote (seed ${seed})`, async (t) => {
    const life = begin(seed)
    for (let i = 0; i < 60; i++) step(life)
    life.pool.commitNow()
    await isAsBelieved(t, life, `pool-${seed}`)
    life.pool = ThinPool.load(life.disk, life.data)
    await isAsBelieved(t, life, `pool-${seed}-loaded`)
  })

  test(`after a power cut in the middle of a commit, there is the state before or after it (seed ${seed})`, async (t) => {
    const life = begin(seed)
    for (let i = 0; i < 40; i++) step(life)
    for (let steps = life.random.integer(0, 12); steps > 0 && life.pool.stepCommit(life.random) !== 'done'; steps--);
    life.disk.crash(life.random)
    life.data.crash(life.random)
    life.pool = ThinPool.load(life.disk, life.data)
    await isAsBelieved(t, life, `crashed-${seed}`)
    for (let i = 0; i < 20; i++) step(life)
    life.pool.commitNow()
    await isAsBelieved(t, life, `crashed-${seed}-later`)
  })
}
