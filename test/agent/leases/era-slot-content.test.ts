import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import { eraUuid } from '../../../src/agent/node/era-devices.ts'
import { isEraSlot, readEraSlot } from '../../../src/agent/leases/era-slot-content.ts'
import { poolKey } from '../../../src/agent/leases/pool-slot.ts'
import { writeEraImage } from '../../support/era-image.ts'
import { EraModel } from '../../support/era-model.ts'
import { testFolder } from '../../support/test-folder.ts'

const folder = testFolder(test)

test('leases of tracked volumes are told from those of pools', (t) => {
  t.true(isEraSlot(poolKey({ name: 'srv', uuid: eraUuid({ id: 'era:0b0e' }) })))
  t.false(isEraSlot(poolKey({ name: 'vg-pool-tpool', uuid: 'LVM-abc-tpool' })))
  t.false(isEraSlot(poolKey({ name: 'DELTAMAPPER-era-x', uuid: '' })))
})

test('what is in a slot is told by its block and by what it holds, which no later one has', async (t) => {
  const path = join(folder, 'era.img')
  const model = new EraModel(100)
  const look = async () => {
    await writeFile(path, writeEraImage(model.view(), model.held ? { held: model.held } : {}).bytes)
    return readEraSlot(path)
  }
  t.deepEqual(await look(), { heldRoot: 0, facts: undefined })
  model.write(5)
  model.takeSnapshot()
  const first = await look()
  t.true(first.heldRoot > 0)
  t.regex(first.facts ?? '', /^era 2 /)
  model.dropSnapshot()
  t.deepEqual(await look(), { heldRoot: 0, facts: undefined })
  model.takeSnapshot()
  const second = await look()
  t.regex(second.facts ?? '', /^era 3 /)
  t.not(second.facts, first.facts)
})
