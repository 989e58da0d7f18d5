/**
 * The streaming XML readers against the naive one (test/support/naive-xml.ts), on documents in every spelling and on spoiled ones: both
 * must accept the same, and understand the same. The quick way and the plain way must also refuse at the same place, however the bytes
 * are cut.
 */
import { readdirSync, readFileSync } from 'node:fs'
import test from 'ava'
import fc from 'fast-check'
import { Random } from '../support/random.ts'
import { randomCuts, streamOf } from '../support/read-xml.ts'
import { asAnybodyMight, asPrinted } from '../support/spell-xml.ts'
import { spoiled } from '../support/spoil-xml.ts'
import { outcome, triedDialects, tryBytes, trySpoiled } from '../support/xml-trial.ts'

const folder = new URL('../fixtures/xml/', import.meta.url)
const seed = fc.integer()

for (const dialect of triedDialects) {
  const { tool, read, naive, document } = dialect
  test(`${tool}: a document means the same however it is spelled and cut`, async (t) => {
    await fc.assert(
      fc.asyncProperty(
        document,
        seed,
        fc.constantFrom(0, 0.03, 0.3),
        fc.boolean(),
        async (root, seed, wildness, quick) => {
          const random = new Random(seed)
          const printed = Buffer.from(asPrinted(root, random.chance(0.5)))
          const spelled = Buffer.from(asAnybodyMight(root, random, wildness))
          const meaning = naive(printed)
          t.deepEqual(naive(spelled), meaning)
          const cuts = () => randomCuts(random, Math.min(printed.length, spelled.length))
          t.deepEqual(await read(streamOf(printed, cuts()), { quick }), meaning)
          t.deepEqual(await read(streamOf(spelled, cuts()), { quick }), meaning)
        }
      ),
      { numRuns: 80 }
    )
  })

  test(`${tool}: a spoiled document is refused, or means what it says`, async (t) => {
    const tally = { refused: 0, accepted: 0 }
    await fc.assert(
      fc.asyncProperty(document, seed, async (root, seed) => {
        const { refused, accepted } = await trySpoiled(dialect, root, new Random(seed), 8)
        tally.refused += refused
        tally.accepted += accepted
      }),
      { numRuns: 60 }
    )
    // Both happen, or this would prove little.
    t.log(tally)
    t.true(tally.refused > 100 && tally.accepted > 0)
  })

  const outputs = readdirSync(folder).filter((file) => file.startsWith(`${tool}-`) && !file.includes('skip-mappings'))
  for (const file of outputs) {
    const content = readFileSync(new URL(file, folder))
    test(`${file}: read as the naive reader does`, async (t) => {
      const expected = naive(content)
      t.deepEqual(await read(streamOf(content)), expected)
      t.deepEqual(await read(streamOf(content), { quick: false }), expected)
    })
  }

  const shortest = outputs.map((file) => readFileSync(new URL(file, folder))).filter(({ length }) => length < 10_000)
  test(`${tool}: torn anywhere, it is refused`, async (t) => {
    const refused = async (content: Buffer, length: number) =>
      'refused' in (await outcome(read(streamOf(content.subarray(0, length), [Math.floor(length / 2)]))))
    const random = new Random(tool.length)
    // At every byte of something short, and here and there in what the tools have printed.
    const [made] = fc.sample(document, { numRuns: 1, seed: 3 })
    for (const content of [Buffer.from(asPrinted(made)).subarray(0, 1500), ...shortest]) {
      const end = content.toString().trimEnd().length
      const places =
        content.length <= 1500
          ? Array.from({ length: end }, (_, i) => i)
          : Array.from({ length: 60 }, () => random.integer(0, end - 1))
      for (const length of places) t.true(await refused(content, length), `${length} of ${end} bytes`)
    }
    for (const content of shortest) {
      t.true(await refused(content, content.toString().trimEnd().length - 1))
      t.false(await refused(content, content.toString().trimEnd().length), 'only the last newline is missing')
    }
  })

  test(`${tool}: real output, spoiled`, async (t) => {
    const random = new Random(tool.length)
    for (const content of shortest) {
      for (let trial = 0; trial < 60; trial++) await tryBytes(dialect, spoiled(content, random), random)
    }
    t.pass()
  })
}
