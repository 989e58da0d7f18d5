/**
 * Random histories of an era device, for a model of it: writes here and there, at the borders of everything that has some, in runs; eras
 * that end by checkpoint or suspension, digestion that has come any distance, growth, metadata snapshots taken and dropped.
 */
import fc from 'fast-check'
import { EraModel } from './era-model.ts'

/** Borders of words, of blocks of the era array, of blocks of a bitset, of stretches that are read together. */
const borders = [0, 1, 31, 32, 33, 63, 64, 65, 1017, 1018, 1019, 32575, 32576, 32577, 130303, 130304, 130305]

type Step =
  | { readonly do: 'write'; readonly at: number; readonly length: number }
  | { readonly do: 'checkpoint' | 'digest' | 'snapshot' | 'drop' }
  | { readonly do: 'digest part'; readonly of: number }
  | { readonly do: 'grow'; readonly by: number }

const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({
      do: fc.constant('write' as const),
      at: fc.oneof(fc.constantFrom(...borders), fc.nat({ max: 200_000 })),
      length: fc.oneof(fc.constant(1), fc.nat({ max: 40 }), fc.nat({ max: 3000 }))
    })
  },
  { weight: 4, arbitrary: fc.constant({ do: 'checkpoint' as const }) },
  { weight: 2, arbitrary: fc.constant({ do: 'digest' as const }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('digest part' as const), of: fc.nat({ max: 200_000 }) }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('grow' as const), by: fc.nat({ max: 40_000 }) }) },
  { weight: 1, arbitrary: fc.constantFrom({ do: 'snapshot' as const }, { do: 'drop' as const }) }
)

export interface EraHistory {
  readonly model: EraModel
  readonly steps: readonly Step[]
}

export const eraHistory: fc.Arbitrary<EraHistory> = fc
  .record({
    blocks: fc.oneof(fc.integer({ min: 1, max: 3000 }), fc.integer({ min: 1, max: 140_000 })),
    steps: fc.array(step, { maxLength: 40 }),
    suspended: fc.boolean()
  })
  .map(({ blocks, steps, suspended }) => {
    const model = new EraModel(blocks)
    for (const each of steps) take(model, each)
    if (suspended) model.suspend()
    return { model, steps }
  })

function take(model: EraModel, step: Step): void {
  switch (step.do) {
    case 'write': {
      const begin = step.at % model.blocks
      for (let block = begin; block < Math.min(begin + step.length, model.blocks); block++) model.write(block)
      break
    }
    case 'checkpoint':
      model.checkpoint()
      break
    case 'digest':
      model.digest()
      break
    case 'digest part':
      model.digest(step.of)
      break
    case 'grow':
      model.suspend()
      model.resume(model.blocks + step.by)
      break
    case 'snapshot':
      if (!model.held) model.takeSnapshot()
      break
    case 'drop':
      model.dropSnapshot()
  }
}
