/**
 * What is said of a base that was never served: in the log, or as an error where `strictBases` is set.
 */
import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import { pino } from 'pino'
import { type Catalog, openCatalog } from '../../../src/agent/catalog/catalog.ts'
import { catalogKnowledge } from '../../../src/agent/answers/served-target.ts'
import type { SeenDevice } from '../../../src/agent/walks/seen-devices.ts'
import { DeltamapperError } from '../../../src/errors.ts'
import { testFolder } from '../../support/test-folder.ts'

const folder = testFolder(test)
// A catalog's thread does not keep a process alive on its own.
const alive = setInterval(() => undefined, 1000)
test.after.always(() => clearInterval(alive))

let catalogs = 0
async function newCatalog(t: ExecutionContext): Promise<Catalog> {
  const catalog = await openCatalog(join(folder, `catalog-${++catalogs}`, 'catalog.db'))
  t.teardown(() => catalog.close())
  return catalog
}

/** The parts of an agent that decide, and what they log. */
function knowledgeOf(catalog: Catalog, strictBases = false) {
  const lines: Record<string, unknown>[] = []
  const logger = pino({}, { write: (line: string) => void lines.push(JSON.parse(line) as Record<string, unknown>) })
  return { lines, knowledge: catalogKnowledge(catalog, logger, { strictBases }) }
}

function seen(name: string, creationTime: number): SeenDevice {
  return {
    snapshot: {
      kind: 'thin',
      ...{ handle: `vg/${name}`, identity: `uuid of ${name}`, volume: 'uuid of data', thinId: creationTime },
      ...{ sizeBytes: 2 ** 30, metadataPath: '/dev/mapper/vg-pool_tmeta', live: true }
    },
    transactionId: BigInt(creationTime),
    fingerprint: { creationTime, mappedBlocks: 100, root: 7, rootChecksum: 8 }
  }
}

const [base, target] = [seen('monday', 1), seen('tuesday', 2)]

test('a base that was never served is answered, and each answer says so in the log', async (t) => {
  const catalog = await newCatalog(t)
  const { knowledge, lines } = knowledgeOf(catalog)
  // That it was a base before is no proof.
  for (const times of [1, 2]) {
    await knowledge.check({ base, target, resumed: false })
    t.is(lines.length, times)
    t.like(lines.at(-1), { level: 40, base: 'vg/monday', code: 'DM_BASE_UNRECORDED' })
    t.regex(String(lines.at(-1)?.msg), /^the base was never served here: nothing proves that it was not trimmed/)
  }
})

test('with strictBases it is refused, and once it was served it is a base', async (t) => {
  const catalog = await newCatalog(t)
  const { knowledge, lines } = knowledgeOf(catalog, true)
  for (let times = 0; times < 2; times++) {
    const error = await t.throwsAsync(knowledge.check({ base, target, resumed: false }), {
      instanceOf: DeltamapperError
    })
    t.like(error, { code: 'DM_BASE_UNRECORDED', status: 'FAILED_PRECONDITION' })
    t.regex(error?.message ?? '', /^vg\/monday was never served here/)
  }
  t.is((await catalog.served.find({ handle: 'vg/tuesday', identity: '' })).length, 0, 'nothing was answered')
  await knowledge.check({ target: base, resumed: false })
  await knowledge.check({ base, target, resumed: false })
  t.deepEqual(lines, [])
})

test('an answer does not go on with a base that it was not begun with', async (t) => {
  const catalog = await newCatalog(t)
  const { knowledge, lines } = knowledgeOf(catalog)
  await knowledge.check({ target, resumed: false })
  await t.throwsAsync(knowledge.check({ base, target, resumed: true }), { code: 'DM_RESUME_REFUSED' })
  t.deepEqual(lines, [])
  await knowledge.check({ base, target, resumed: false })
  await t.notThrowsAsync(knowledge.check({ base, target, resumed: true }))
  t.is(lines.length, 2)
})
