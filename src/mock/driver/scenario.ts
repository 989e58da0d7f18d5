/**
 * Scenarios: how the mock answers, a few lines of YAML each. Those of the package lie in scenarios/ (for whoever
 * writes a client) and mutants/ (drivers that break one rule, for whoever tests a conformance suite); any other file
 * may be named by its path.
 */
import { readdirSync } from 'node:fs'
import { basename, join } from 'node:path'
import { status as grpcStatus } from '@grpc/grpc-js'
import { z } from 'zod'
import { fieldsOf } from '../../config-issues.ts'
import { DeltamapperError } from '../../errors.ts'
import { readOrdinaryFileSync } from '../../ordinary-file.ts'
import { systemRemedy } from '../../system-errors.ts'
import { Random } from '../../random.ts'
import { faultNames } from './faults.ts'

const COPY_ONE = 'copy one that `deltamapper mock --list` names, and change it; docs/conformance.md has every field'

/** Every status but OK, by gRPC's name. */
const statusName = z.enum(Object.keys(grpcStatus).filter((name) => /^[A-Z_]+$/.test(name) && name !== 'OK'))

const scenarioSchema = z.strictObject({
  /** One line: what it is for. */
  summary: z.string(),
  /**
   * honest: any client has to get a right backup of it. cut: it breaks off, and a client has to notice. liar: what it
   * says breaks the rules, and a client must not believe it. mutant: what is wrong with it, no client can see.
   */
  kind: z.enum(['honest', 'cut', 'liar', 'mutant']),
  type: z.enum(['VARIABLE_LENGTH', 'FIXED_LENGTH']).default('VARIABLE_LENGTH'),
  /** Tuples in a message, at most. */
  tuplesPerMessage: z.int().min(1).default(16),
  /** Whether a message without tuples says type and capacity where there is nothing else to say. */
  messageWhenEmpty: z.boolean().default(true),
  /** Whether messages without tuples come in between. */
  emptyMessagesBetween: z.boolean().default(false),
  /** Where an answer begins whose offset lies within a range: there, or where the range begins. */
  starts: z.enum(['exact', 'rounded-down']).default('exact'),
  /** Before each message, in milliseconds. */
  delayMs: z.int().min(0).max(60_000).default(0),
  /** The last tuple reaches so many bytes beyond the capacity. */
  overlongBytes: z.int().min(0).default(0),
  /** Bytes by which the first volume grows before its last snapshot; a multiple of 16 KiB. */
  growBytes: z
    .int()
    .min(0)
    .multipleOf(16 * 1024)
    .default(0),
  /** Nothing is written to the first volume between its first two snapshots: that delta is empty. */
  idleNight: z.boolean().default(false),
  /**
   * Each question's answers break off after so many messages: the first answer after the first number, and so
   * on; then they are whole.
   */
  cut: z
    .strictObject({ after: z.array(z.int().min(0)).min(1), how: z.union([statusName, z.literal('connection')]) })
    .optional(),
  /** Every delta is refused with this status: the base is gone. */
  refuseDelta: statusName.optional(),
  /** Ways to break the rules, by name; see faults.ts. */
  faults: z.array(z.enum(faultNames)).default([]),
  /**
   * With --kubernetes: after so many calls that were cut short (0: never), tokens made until then are no longer
   * good.
   */
  expireTokens: z.boolean().default(false),
  /** With --kubernetes: after the first cut, the service has another authority and certificate. */
  rotateCa: z.boolean().default(false),
  /** With --kubernetes: after the first cut, the name of the VolumeSnapshot is another snapshot's. */
  reuseName: z.boolean().default(false)
})

export type Scenario = z.infer<typeof scenarioSchema> & { readonly name: string }

const mockFolder = join(import.meta.dirname, '..')
const folders = { scenarios: join(mockFolder, 'scenarios'), mutants: join(mockFolder, 'mutants') }

/** The scenarios that clients are tested with, or the mutants, by name. */
export function listScenarios(which: keyof typeof folders = 'scenarios'): Scenario[] {
  return readdirSync(folders[which])
    .filter((name) => name.endsWith('.yaml'))
    .sort()
    .map((name) => readScenario(join(folders[which], name)))
}

/**
 * A scenario by its name, by the path of its file (which has a slash or ends with .yaml or .yml), or `random`, which
 * the seed picks.
 *
 * @throws DM_CONFIG_INVALID for a name that is none's, or a file that is no scenario
 */
export function loadScenario(nameOrFile: string, seed: number): Scenario {
  if (nameOrFile === 'random') return new Random(seed).pick(listScenarios())
  if (nameOrFile.includes('/') || /\.ya?ml$/.test(nameOrFile)) return readScenario(nameOrFile)
  for (const which of ['scenarios', 'mutants'] as const) {
    const known = readdirSync(folders[which]).includes(`${nameOrFile}.yaml`)
    if (known) return readScenario(join(folders[which], `${nameOrFile}.yaml`))
  }
  throw new DeltamapperError(
    'DM_CONFIG_INVALID',
    `there is no scenario ${nameOrFile}`,
    'deltamapper mock --list names them; a file of your own is named by its path'
  )
}

/** Fields of a scenario as they stand in a file, the others as usual. @throws DM_CONFIG_INVALID */
export function scenarioOf(name: string, fields: unknown): Scenario {
  const parsed = scenarioSchema.safeParse(fields)
  if (parsed.success) return { ...parsed.data, name }
  const { path, message } = parsed.error.issues[0]
  throw new DeltamapperError(
    'DM_CONFIG_INVALID',
    `${name} is no scenario: ${path.length > 0 ? `${path.join('.')}: ` : ''}${message}`,
    COPY_ONE
  )
}

function readScenario(path: string): Scenario {
  try {
    const fields = fieldsOf(readOrdinaryFileSync(path).toString('utf8'), scenarioSchema)
    return { ...fields, name: basename(path).replace(/\.ya?ml$/, '') }
  } catch (cause) {
    throw new DeltamapperError(
      'DM_CONFIG_INVALID',
      `the scenario ${path} cannot be used: ${(cause as Error).message.replaceAll(/\s+/g, ' ').trim()}`,
      systemRemedy(cause) ?? COPY_ONE,
      { cause }
    )
  }
}
