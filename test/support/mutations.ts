/**
 * A campaign of damage under right checksums: one field of the structure after another is changed (keys, counts, flags, pointers, sizes,
 * levels), the block is sealed again, and the answers are judged by what they would do to a backup.
 *
 * An error is fine, and so is an answer that has all that the undamaged metadata's has. A smaller answer is wrong, unless the kernel's own
 * tools find nothing wrong with the image either, and say the same; or the damage is of a kind that docs/guarantees.md says cannot be noticed
 * in an answer of that kind.
 */
import { closeSync, openSync, writeFileSync, writeSync } from 'node:fs'

import { DeltamapperError } from '../../src/errors.ts'
import type { Extent } from './expected.ts'
import { BLOCK_BYTES } from './metadata-image.ts'
import { type Random } from './random.ts'

/** What docs/guarantees.md lists under "Cannot be noticed", "Damage". */
export type Unnoticed =
  /** What a leaf, a bitset or the era array says of a block was replaced by something else that can be. */
  | 'content'
  /** A pointer leads to another intact node that has the same keys. */
  | 'pointer'
  /** The oldest writesets are missing, as if they had been digested. */
  | 'oldest'
  /** A node in a file, not of a kernel in use, has room for fewer entries, so that its values are read from another place. */
  | 'room'
  /** A size or an offset cuts the answer, so that mappings are not counted. */
  | 'cut'
  /** Several things are wrong, and make up for each other. */
  | 'several'

/** A change to an image in place, every checksum right again. */
export interface Mutation {
  readonly name: string
  /** The blocks that are changed. */
  readonly blocks: readonly number[]
  readonly unnoticed: Unnoticed | undefined
}

export interface MutatedQuestion {
  readonly name: string
  /** The size or an offset leaves out part of what there is. */
  readonly isCut: boolean
}

export type MutatedAnswer = readonly Extent[] | { readonly thrown: unknown }

/** One kind of metadata: how an image of it is changed, asked, and checked by others. */
export interface Campaign<Question extends MutatedQuestion> {
  readonly bytes: Buffer
  readonly questions: readonly Question[]
  /** Changes the bytes. */
  readonly mutate: (bytes: Buffer, random: Random) => Mutation
  readonly ask: (path: string) => Promise<MutatedAnswer[]>
  /** What the kernel's checking tool has against the image; empty when it is content. */
  readonly check: (path: string) => Promise<string>
  /** What the kernel's dumping tool makes of the question; undefined where it cannot say. */
  readonly oracle: (path: string, question: Question) => Promise<readonly Extent[] | undefined>
}

/** How often each came. */
export interface Tally {
  images: number
  answers: number
  refused: number
  /** As before the damage, or more. */
  notSmaller: number
  /** Smaller, on an image that is intact to the kernel's tools, which say the same. */
  intact: number
  /** Smaller, in a way that cannot be noticed. */
  unnoticed: Record<Unnoticed, number>
}

export function newTally(): Tally {
  return {
    ...{ images: 0, answers: 0, refused: 0, notSmaller: 0, intact: 0 },
    unnoticed: { content: 0, pointer: 0, oldest: 0, room: 0, cut: 0, several: 0 }
  }
}

/**
 * Mutates an image so many times, once or (seldom) twice each time.
 *
 * @param path where the image is written and changed
 * @returns what is wrong with answers, or an empty list; `tally` is added to
 */
export async function runCampaign<Question extends MutatedQuestion>(
  campaign: Campaign<Question>,
  path: string,
  random: Random,
  count: number,
  tally: Tally
): Promise<string[]> {
  writeFileSync(path, campaign.bytes)
  const truth = (await campaign.ask(path)).map((answer) => {
    if ('thrown' in answer) throw answer.thrown
    return answer
  })
  const complaint = await campaign.check(path)
  if (complaint !== '') throw new Error(`undamaged: ${complaint}`)
  const file = openSync(path, 'r+')
  const faults: string[] = []
  const put = (from: Buffer, blocks: Iterable<number>) => {
    for (const block of blocks) writeSync(file, from, block * BLOCK_BYTES, BLOCK_BYTES, block * BLOCK_BYTES)
  }
  try {
    for (let i = 0; i < count; i++) {
      const bytes = Buffer.from(campaign.bytes)
      const mutations = [campaign.mutate(bytes, random)]
      if (random.chance(0.1)) mutations.push(campaign.mutate(bytes, random))
      const blocks = new Set(mutations.flatMap((each) => each.blocks))
      put(bytes, blocks)
      tally.images++
      faults.push(...(await judge(campaign, path, mutations, truth, tally)))
      put(campaign.bytes, blocks)
    }
  } finally {
    closeSync(file)
  }
  return faults
}

async function judge<Question extends MutatedQuestion>(
  { questions, ask, check, oracle }: Campaign<Question>,
  path: string,
  mutations: readonly Mutation[],
  truth: readonly (readonly Extent[])[],
  tally: Tally
): Promise<string[]> {
  const faults: string[] = []
  let complaint: string | undefined
  for (const [i, answer] of (await ask(path)).entries()) {
    const fault = (what: string) =>
      faults.push(`${mutations.map(({ name }) => name).join(' and ')}: ${questions[i].name}: ${what}`)
    tally.answers++
    if ('thrown' in answer) {
      tally.refused++
      if (!(answer.thrown instanceof DeltamapperError) || answer.thrown.code === 'DM_INTERNAL') {
        fault(`threw ${answer.thrown instanceof Error ? (answer.thrown.stack ?? '') : String(answer.thrown)}`)
      }
      continue
    }
    if (covers(answer, truth[i])) {
      tally.notSmaller++
      continue
    }
    complaint ??= await check(path)
    const right = complaint === '' ? await oracle(path, questions[i]) : truth[i]
    const why = whyUnnoticed(mutations, questions[i])
    if (complaint === '' && (right === undefined || covers(answer, right))) tally.intact++
    else if (why !== undefined) tally.unnoticed[why]++
    else fault(`answered ${text(answer)} for ${text(right ?? [])}; the check finds: ${complaint}`)
  }
  return faults
}

function whyUnnoticed(mutations: readonly Mutation[], { isCut }: MutatedQuestion): Unnoticed | undefined {
  const kinds = new Set(mutations.map(({ unnoticed }) => unnoticed))
  for (const kind of ['content', 'pointer', 'oldest', 'room'] as const) if (kinds.has(kind)) return kind
  return isCut ? 'cut' : mutations.length > 1 ? 'several' : undefined
}

/** Whether every byte of `inner` is in `outer`. */
function covers(outer: readonly Extent[], inner: readonly Extent[]): boolean {
  let i = 0
  for (const [begin, size] of inner) {
    while (i < outer.length && outer[i][0] + outer[i][1] <= begin) i++
    if (i === outer.length || outer[i][0] > begin || outer[i][0] + outer[i][1] < begin + size) return false
  }
  return true
}

function text(extents: readonly Extent[]): string {
  return JSON.stringify(extents.slice(0, 6)) + (extents.length > 6 ? ` and ${extents.length - 6} more` : '')
}
