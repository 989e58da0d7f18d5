/**
 * Documents of each dialect, made up: any that could be right, from fast-check.
 */
import fc from 'fast-check'
import type { Node } from './naive-xml.ts'
import { node } from './spell-xml.ts'

const kinds = ['same', 'different', 'left_only', 'right_only'] as const

/** Small numbers mostly, so that runs touch; now and then as large as they get. */
const gap = fc.oneof({ weight: 3, arbitrary: fc.constant(0) }, fc.nat({ max: 9 }), fc.nat({ max: 2 ** 34 }))
const length = fc.oneof({ weight: 3, arbitrary: fc.integer({ min: 1, max: 9 }) }, fc.integer({ min: 1, max: 2 ** 31 }))
const data = fc.oneof(
  fc.nat({ max: 1000 }),
  fc.maxSafeNat().map((value) => value % 2 ** 39)
)

const pool = fc
  .record(
    {
      time: fc.nat(),
      transaction: fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
      flags: fc.constantFrom(0, 1),
      data_block_size: fc.integer({ min: 1, max: 16384 }).map((value) => value * 128),
      nr_data_blocks: fc.nat(),
      metadata_snap: fc.nat()
    },
    { requiredKeys: ['time', 'transaction', 'data_block_size', 'nr_data_blocks'] }
  )
  .map((attributes) => ({ uuid: '', ...attributes }))

const side = (name: string) =>
  fc.oneof(
    fc.nat({ max: 2 ** 24 - 1 }).map((id) => ({ [name]: id })),
    fc.nat().map((root) => ({ [`${name}_root`]: root }))
  )

/** thin_delta's, plain or verbose. */
export const deltaDocument: fc.Arbitrary<Node> = fc
  .record({
    pool,
    left: side('left'),
    right: side('right'),
    verbose: fc.boolean(),
    runs: fc.array(fc.record({ kind: fc.constantFrom(...kinds), gap, length, data, other: data }), { maxLength: 40 })
  })
  .map(({ pool, left, right, verbose, runs }) => {
    const diff: Node[] = []
    let next = 0
    for (const { kind, gap, length, data, other } of runs) {
      const begin = next + gap
      next = begin + length
      if (!verbose) {
        diff.push(node(kind, { begin, length }))
        continue
      }
      if (diff.at(-1)?.name !== kind) diff.push(node(kind, {}))
      const addresses = kind === 'different' ? { left_data_begin: data, right_data_begin: other } : { data_begin: data }
      diff.at(-1)?.children.push(node('range', { begin, ...addresses, length }))
    }
    return node('superblock', pool, [node('diff', { ...left, ...right }, diff)])
  })

const mapping = fc.record({ gap, length, data, time: fc.nat({ max: 2 ** 24 - 1 }) })
const mappings = fc.array(mapping, { maxLength: 12 })

/** thin_dump's, with lists that several devices share: each device has some of them, in order, and mappings of its own around them. */
export const dumpDocument: fc.Arbitrary<Node> = fc
  .record({
    pool,
    lists: fc.array(mappings, { maxLength: 4 }),
    devices: fc.array(
      fc.record({
        idGap: fc.nat({ max: 1000 }),
        own: mappings,
        uses: fc.infiniteStream(fc.boolean()),
        creation: fc.nat()
      }),
      { maxLength: 5 }
    )
  })
  .map(({ pool, lists, devices }) => {
    const laid: { nodes: Node[]; blocks: number }[] = []
    let next = 0
    for (const list of lists) {
      laid.push(layOut(list, next))
      next += list.reduce((sum, { gap, length }) => sum + gap + length, 0)
    }
    const children = laid.map(({ nodes }, index) => node('def', { name: index * 7 }, nodes))
    let id = -1
    for (const { idGap, own, uses, creation } of devices) {
      id += idGap + 1
      const used = laid.flatMap(({ blocks }, index) =>
        uses.next().value ? [{ ref: node('ref', { name: index * 7 }), blocks }] : []
      )
      const tail = layOut(own, next)
      const mapped = tail.blocks + used.reduce((sum, { blocks }) => sum + blocks, 0)
      const details = {
        dev_id: id,
        mapped_blocks: mapped,
        transaction: 3,
        creation_time: creation,
        snap_time: creation
      }
      children.push(node('device', details, [...used.map(({ ref }) => ref), ...tail.nodes]))
    }
    return node('superblock', pool, children)
  })

function layOut(list: readonly { gap: number; length: number; data: number; time: number }[], from: number) {
  let next = from
  let blocks = 0
  const nodes = list.map(({ gap, length, data, time }) => {
    const begin = next + gap
    next = begin + length
    blocks += length
    return length === 1
      ? node('single_mapping', { origin_block: begin, data_block: data, time })
      : node('range_mapping', { origin_begin: begin, data_begin: data, length, time })
  })
  return { nodes, blocks }
}

/** era_invalidate's. */
export const invalidateDocument: fc.Arbitrary<Node> = fc
  .array(fc.record({ gap: fc.nat({ max: 2 ** 20 }), length: fc.integer({ min: 1, max: 2 ** 20 }) }), { maxLength: 40 })
  .map((runs) => {
    let next = 0
    const children = runs.map(({ gap, length }) => {
      const begin = next + gap
      next = begin + length
      return length === 1 ? node('block', { block: begin }) : node('range', { begin, end: next })
    })
    return node('blocks', {}, children)
  })

/** era_dump's, bit by bit or in runs. */
export const eraDumpDocument: fc.Arbitrary<Node> = fc
  .record({
    blocks: fc.nat({ max: 40 }),
    growth: fc.nat({ max: 10 }),
    filledUp: fc.boolean(),
    writesets: fc.array(fc.uniqueArray(fc.nat({ max: 39 })), { maxLength: 4 }),
    compact: fc.boolean(),
    eras: fc.infiniteStream(fc.nat())
  })
  .map(({ blocks, growth, filledUp, writesets, compact, eras }) => {
    const current = 3 + writesets.length
    const bits = Math.max(1, blocks - growth)
    const children = writesets.map((marks, index) => {
      const marked = new Set(marks.filter((block) => block < bits))
      const era = 3 + index
      if (compact && marked.size > 0) {
        const runs = [...marked].sort((a, b) => a - b).map((block) => node('marked', { block_begin: block, len: 1 }))
        return node('writeset', { era, nr_bits: bits }, runs)
      }
      const all = Array.from({ length: filledUp ? blocks : bits }, (_, block) =>
        node('bit', { block, value: String(marked.has(block)) })
      )
      return node('writeset', { era, nr_bits: bits }, all)
    })
    const array = Array.from({ length: blocks }, (_, block) =>
      node('era', { block, era: eras.next().value % (current + 1) })
    )
    const attributes = { uuid: '', block_size: 128, nr_blocks: blocks, current_era: current }
    return node('superblock', attributes, [...children, node('era_array', {}, array)])
  })
