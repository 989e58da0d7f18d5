/**
 * Whoever is sent to a command of ours, by a page, an alert, a manifest or a message, finds it: there is one of that name.
 */
import { globSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import { commandLine } from '../src/cli/main.ts'

const project = join(import.meta.dirname, '..')

/** Where people are told what to type. */
const files = globSync(
  ['README.md', 'CHANGELOG.md', 'docs/**/*.md', 'deploy/**/*.{yaml,md,sh,service,txt,json}', 'src/**/*.ts', 'bin/*.js'],
  { cwd: project }
).filter((file) => !file.includes('/generated/'))

/**
 * Each command of ours that a text names, with its line: within backticks (which code may have escaped), as a line to
 * type, and in pages and manifests also without the program's name.
 */
function* named(file: string, groups: readonly string[]): Generator<[line: number, words: string[]]> {
  const text = readFileSync(join(project, file), 'utf8')
  const isCode = /\.[jt]s$/.test(file)
  // Of a page, only what is fenced is to be typed. (Lines stay where they are.)
  let isFenced = false
  const typed = text.split('\n').map((line) => {
    const isFence = line.trimStart().startsWith('```')
    if (isFence) isFenced = !isFenced
    return file.endsWith('.md') && (isFence || !isFenced) ? '' : line
  })
  const forms: [string, RegExp][] = [
    [text, /`(?:npx )?deltamapper ([a-z][a-z-]*)(?: ([a-z][a-z-]*))?/g],
    [typed.join('\n'), /^ *(?:\$ |- )?(?:npx )?deltamapper ([a-z][a-z-]*)(?: ([a-z][a-z-]*))?(?= |$)/gm],
    [isCode ? '' : text, new RegExp(`\`(${groups.join('|')}) ([a-z][a-z-]*)[ \`]`, 'g')]
  ]
  for (const [where, form] of forms) {
    for (const { 1: command = '', 2: second, index } of where.matchAll(form)) {
      yield [where.slice(0, index).split('\n').length, second === undefined ? [command] : [command, second]]
    }
  }
}

test('every command that is named is there', async (t) => {
  const program = await commandLine(() => undefined)
  // One that takes arguments of its own beside its subcommands may have any word there.
  const tree = new Map(
    program.commands.map((each) => {
      const subcommands = each.registeredArguments.length > 0 ? [] : each.commands.map((sub) => sub.name())
      return [each.name(), subcommands]
    })
  )
  const groups = [...tree].flatMap(([name, subcommands]) => (subcommands.length > 0 ? [name] : []))
  t.true(groups.includes('era') && groups.includes('snapshot'))
  const wrong: string[] = []
  let seen = 0
  for (const file of files) {
    for (const [line, [command = '', second]] of named(file, groups)) {
      seen++
      const subcommands = tree.get(command)
      const isThere =
        subcommands !== undefined && (second === undefined || subcommands.length === 0 || subcommands.includes(second))
      if (!isThere) wrong.push(`${file}:${line}: ${command} ${second ?? ''}`)
    }
  }
  t.true(seen > 300, String(seen))
  t.deepEqual(wrong, [])
})
