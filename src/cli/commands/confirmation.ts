/**
 * Asks before something is destroyed that cannot be had back: data, history, or what the catalog knows. On a terminal a
 * person is asked. Where nobody can be, as in a script, `--yes` has to say that it is meant; silence is no answer.
 */
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import type { Command } from 'commander'
import { DeltamapperError } from '../../errors.ts'
import { addAdminOptions } from './admin-command.ts'
import { Interrupted, oneLine, UsageError } from '../command-line/failure.ts'

export interface Confirmed {
  yes?: boolean
}

/** The options of an order that destroys something. */
export function addDestructiveOptions(command: Command): Command {
  return addAdminOptions(command).option('-y, --yes', 'do not ask first; scripts have to say so')
}

/**
 * Resolves when it is meant.
 *
 * @param what what is going to be lost, as a clause: `volume tank/documents is deleted, with all data in it`
 * @param yes whether that was said beforehand
 * @throws UsageError where nobody can be asked; DM_CANCELLED where who was asked does not agree; Interrupted on Ctrl-C
 *   and at the end of input
 */
export async function confirmed(what: string, yes = false): Promise<void> {
  if (yes) return
  if (!process.stdin.isTTY || !process.stderr.isTTY) {
    throw new UsageError(`${what}, for good, and there is no terminal to ask on`, 'say --yes if that is meant')
  }
  const answer = await ask(`${oneLine(what)}, for good. Go on? [y/N] `)
  if (/^\s*y(es)?\s*$/i.test(answer)) return
  throw new DeltamapperError('DM_CANCELLED', 'nothing was done', 'answer y, or say --yes, if it is meant')
}

/** One line from the terminal. The question goes to stderr, because stdout is for answers. */
async function ask(question: string): Promise<string> {
  const lines = createInterface({ input: process.stdin, output: process.stderr })
  const left = new AbortController()
  lines.once('close', () => left.abort())
  lines.once('SIGINT', () => left.abort())
  lines.setPrompt(question)
  lines.prompt()
  try {
    const [line] = (await once(lines, 'line', { signal: left.signal })) as [string]
    return line
  } catch {
    process.stderr.write('\n')
    throw new Interrupted()
  } finally {
    lines.close()
  }
}
