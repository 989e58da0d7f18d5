/**
 * What is said of origins, against histories of which they are known: what is called certain must never be wrong.
 */
import test from 'ava'
import fc from 'fast-check'
import { type Origin, Origins } from '../../../src/cli/inspection/origins.ts'
import type { ThinDevice } from '../../../src/devicemapper/thin/pool-metadata.ts'

/** A device and what the metadata does not say of it: whose snapshot it is, and what family it is of. */
interface KnownDevice extends ThinDevice {
  originId: number | undefined
  family: number
}

/** A pool that keeps time as the kernel does. */
class History {
  readonly devices = new Map<number, KnownDevice>()
  #time = 0
  #nextId = 0
  #nextRoot = 100

  create(): void {
    const id = this.#nextId++
    this.#add({ id, root: this.#nextRoot++, originId: undefined, family: id })
  }

  snapshot(origin: KnownDevice): void {
    this.#time++
    origin.details.snapshottedTime = this.#time
    this.#add({ id: this.#nextId++, root: origin.root, originId: origin.id, family: origin.family })
  }

  write(device: KnownDevice): void {
    device.root = this.#nextRoot++
  }

  #add(device: Omit<KnownDevice, 'details'>): void {
    const time = this.#time
    const details = { mappedBlocks: 0, transactionId: 0n, creationTime: time, snapshottedTime: time }
    this.devices.set(device.id, { ...device, details })
  }

  origins(): Origins {
    const origins = new Origins()
    for (const device of this.devices.values()) origins.add(device)
    origins.complete()
    return origins
  }
}

const step = fc.record({
  kind: fc.constantFrom('create', 'snapshot', 'snapshot', 'write', 'remove'),
  pick: fc.nat()
})

function played(steps: { kind: string; pick: number }[]): History {
  const history = new History()
  history.create()
  for (const { kind, pick } of steps) {
    const all = [...history.devices.values()]
    const device = all[pick % all.length]
    if (kind === 'create' || all.length === 0) history.create()
    else if (kind === 'snapshot') history.snapshot(device)
    else if (kind === 'write') history.write(device)
    else history.devices.delete(device.id)
  }
  return history
}

test('what is certain is true, and the true origin is never left out', (t) => {
  let certain = 0
  fc.assert(
    fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
      const history = played(steps)
      const origins = history.origins()
      for (const device of history.devices.values()) {
        const byClock = origins.of(device)
        const sharing = byClock.devices.filter((id) => history.devices.get(id)?.family === device.family)
        for (const origin of [byClock, origins.refined(byClock, sharing)]) {
          if (origin.certainty === 'certain') {
            certain++
            t.deepEqual(origin.devices, device.originId === undefined ? [] : [device.originId])
          }
          const exists = device.originId !== undefined && history.devices.has(device.originId)
          if (exists && !origin.more) t.true(origin.devices.includes(device.originId ?? -1))
          t.true(origin.devices.every((id) => history.devices.has(id) && id !== device.id))
        }
      }
    })
  )
  t.true(certain > 100)
})

test('a twin has the same root', (t) => {
  fc.assert(
    fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
      const history = played(steps)
      const origins = history.origins()
      for (const device of history.devices.values()) {
        const others = [...history.devices.values()].filter(({ id, root }) => id !== device.id && root === device.root)
        t.is(origins.twinOf(device), others.length === 0 ? undefined : Math.min(...others.map(({ id }) => id)))
      }
    })
  )
})

function device(id: number, creationTime: number, snapshottedTime: number, root = id): ThinDevice {
  return { id, root, details: { mappedBlocks: 1, transactionId: 0n, creationTime, snapshottedTime } }
}

function originsOf(...devices: ThinDevice[]): Origins {
  const origins = new Origins()
  for (const each of devices) origins.add(each)
  origins.complete()
  return origins
}

const cases: [string, ThinDevice[], number, Origin['certainty'], number[]][] = [
  ['created before the first snapshot', [device(0, 0, 0)], 0, 'certain', []],
  ['alone with a later time', [device(3, 4, 4)], 0, 'unknown', []],
  ['the snapshot taken last', [device(0, 0, 1), device(1, 1, 1)], 1, 'likely', [0]],
  ['an earlier snapshot', [device(0, 0, 2), device(1, 1, 1), device(2, 2, 2)], 1, 'possible', [0]],
  ['one of two created at that time', [device(0, 0, 1), device(1, 1, 1), device(2, 1, 1)], 2, 'possible', [0]],
  ['two volumes that may be it', [device(0, 0, 5), device(1, 0, 6), device(2, 3, 3)], 2, 'possible', [0, 1]],
  ['a volume that is younger', [device(0, 4, 5), device(2, 3, 3)], 1, 'unknown', []]
]

for (const [what, devices, index, certainty, ids] of cases) {
  test(`by the clock alone: ${what}`, (t) => {
    const origin = originsOf(...devices).of(devices[index])
    t.is(origin.certainty, certainty)
    t.deepEqual(origin.devices, ids)
    t.false(origin.more)
  })
}

test('of many candidates, sixteen are named, and it is said that there are more', (t) => {
  const volumes = Array.from({ length: 40 }, (_, id) => device(id, 0, 50 + id))
  const snapshot = device(99, 7, 7)
  const origins = originsOf(...volumes, snapshot)
  const origin = origins.of(snapshot)
  t.is(origin.devices.length, 16)
  t.true(origin.more)
  t.is(origins.refined(origin, origin.devices.slice(0, 1)).certainty, 'possible')
})
