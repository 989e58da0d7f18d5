/**
 * Asks for extents and shows them: the one path of `allocated` and `delta`, from the question to stdout, for every
 * source.
 */
import type { ExtentAnswer } from '../../devicemapper/extents.ts'
import { withAnswer } from '../answers/answer.ts'
import type { AnswerOptions, Question, Remark } from '../answers/question.ts'
import { interruptible } from '../command-line/interruption.ts'
import { writeJson } from '../output/json.ts'
import { mapStyle, writeMap } from '../output/map.ts'
import { writeNdjson } from '../output/ndjson.ts'
import { withProgress } from '../output/progress.ts'
import { writeTable } from '../output/table.ts'
import { TextOutput } from '../output/text-output.ts'
import type { Subject } from '../output/totals.ts'

export interface ShowOptions {
  /** Seconds. */
  timeout?: number
  output: 'table' | 'json' | 'ndjson' | 'map'
}

export interface ExtentsOptions extends AnswerOptions, Omit<ShowOptions, 'output'> {
  /** The last two are made apart (show-ranges.ts). */
  output: ShowOptions['output'] | 'ranges' | 'borg-map'
}

/** Asks, and shows the answer. Resolves when it is complete and written. */
export async function showExtents(question: Question, options: AnswerOptions & ShowOptions): Promise<void> {
  await showAnswer(question.ask, options, (signal, remark, use) => withAnswer(question, options, signal, remark, use))
}

/** Shows the answer that `withAnswer` hands to its last argument. Resolves when it is complete and written. */
export async function showAnswer(
  ask: Question['ask'],
  options: ShowOptions,
  withAnswer: (signal: AbortSignal, remark: Remark, use: (answer: ExtentAnswer) => Promise<void>) => Promise<void>
): Promise<void> {
  const { stdout, stderr } = process
  const subject: Subject = ask === 'allocated' ? 'allocated' : 'changed'
  await interruptible(options.timeout, async (signal) => {
    const remark = (text: string) => stderr.write(`deltamapper: ${text}\n`)
    await withAnswer(signal, remark, async (answer) => {
      const output = new TextOutput(stdout, signal)
      // On the terminal where the extents are printed, a bar would only be in their way.
      const shown = stdout.isTTY && options.output !== 'map' ? answer : withProgress(answer, stderr)
      switch (options.output) {
        case 'table':
          return writeTable(shown, output, subject)
        case 'json':
          return writeJson(shown, output)
        case 'ndjson':
          return writeNdjson(shown, output)
        case 'map':
          return writeMap(shown, output, subject, mapStyle(stdout.isTTY ? stdout.columns : undefined, process.env))
      }
    })
  })
}
