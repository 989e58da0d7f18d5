/**
 * Every place in the sources where an error is made says what is wrong and what to do about it. Read from the sources, because most of these
 * places are reached by no test.
 */
import { globSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import ts from 'typescript'
import { type ErrorCode, errorRegistry } from '../src/errors.ts'

const project = join(import.meta.dirname, '..')

interface Site {
  /** FILE:LINE */
  readonly where: string
  readonly maker: string
  readonly code: string | undefined
  /** As written, without quotes; each of the texts that it may be. */
  readonly message: readonly string[]
  readonly remedy: readonly string[]
}

/** Which argument is the code, the message and the remedy. */
const makers: Record<string, { code?: number; message: number; remedy?: number }> = {
  DeltamapperError: { code: 0, message: 1, remedy: 2 },
  UsageError: { message: 0, remedy: 1 },
  invalid: { message: 0, remedy: 1 },
  defect: { message: 0 }
}

const sites: Site[] = globSync(['src/**/*.ts', 'native/**/*.ts', 'bin/*.ts'], { cwd: project })
  .filter((file) => !file.includes('/generated/') && file !== 'src/errors.ts')
  .toSorted()
  .flatMap(sitesOf)

function sitesOf(file: string): Site[] {
  const source = ts.createSourceFile(file, readFileSync(join(project, file), 'utf8'), ts.ScriptTarget.Latest, true)
  const found: Site[] = []
  const look = (node: ts.Node): void => {
    if (ts.isNewExpression(node) || ts.isCallExpression(node)) {
      const name = node.expression.getText()
      const places = makers[name]
      // (Some files have an `invalid` of their own, which takes what they know.)
      const isOurs =
        name !== 'invalid' || new RegExp(`import \\{[^}]*\\binvalid\\b[^}]*\\} from '.*errors\\.ts'`).test(source.text)
      if (places && isOurs) {
        const args = node.arguments ?? ts.factory.createNodeArray()
        const at = (place: number | undefined) => (place === undefined ? undefined : args[place])
        found.push({
          where: `${file}:${source.getLineAndCharacterOfPosition(node.getStart()).line + 1}`,
          maker: name,
          code: textsOf(at(places.code))[0],
          message: textsOf(at(places.message)),
          remedy: textsOf(at(places.remedy))
        })
      }
    }
    ts.forEachChild(node, look)
  }
  look(source)
  return found
}

/** The texts that an expression may be; what is put into them is `…`. None where that cannot be read. */
function textsOf(node: ts.Expression | undefined): string[] {
  if (node === undefined) return []
  if (ts.isStringLiteral(node) || ts.isNoSubstitutionTemplateLiteral(node)) return [node.text]
  if (ts.isTemplateExpression(node)) {
    return [node.head.text + node.templateSpans.map(({ literal }) => `…${literal.text}`).join('')]
  }
  if (ts.isParenthesizedExpression(node)) return textsOf(node.expression)
  if (ts.isConditionalExpression(node)) return [...textsOf(node.whenTrue), ...textsOf(node.whenFalse)]
  if (ts.isBinaryExpression(node)) {
    const [left, right] = [textsOf(node.left), textsOf(node.right)]
    if (node.operatorToken.kind === ts.SyntaxKind.QuestionQuestionToken) return [...left, ...right]
    return left.length > 0 && right.length > 0 ? [`${left[0]}${right[0]}`] : []
  }
  return []
}

test('every place has a text of what is wrong, and one of what to do', (t) => {
  t.true(sites.length > 380, String(sites.length))
  const unread = sites.filter(
    ({ maker, message, remedy }) => message.length === 0 || (maker !== 'defect' && remedy.length === 0)
  )
  // Where the text is a variable, it was made beside; these are few.
  t.true(unread.length < 70, unread.map(({ where }) => where).join('\n'))
  for (const { where, message, remedy } of sites) {
    for (const text of [...message, ...remedy]) {
      t.true(text.trim().length > 0, `${where}: empty`)
      t.notRegex(text, /[.;:]$|^\s|\s$|\n/, `${where}: ${text}`)
    }
  }
})

test('what to do is a thing that can be done, and not the same for everything', (t) => {
  for (const { where, remedy } of sites) {
    for (const text of remedy) {
      t.notRegex(
        text,
        /^(?:complete|correct|check|fix|install|repair|solve|try) (?:it|that|this)(?: again)?$/,
        `${where}: "${text}" of what?`
      )
      t.notRegex(text, /^[A-Z](?![A-Z])/, `${where}: it goes on after a semicolon: ${text}`)
    }
  }
})

/** Files that may ask for a report, beside defects: what is wrong is none of the reader's things. */
const askForReports = [
  // The kernel, a tool or another server does what nobody here knows.
  'src/backup/prune.ts',
  'src/backup/verify.ts',
  'src/devicemapper/block-queue.ts',
  'src/devicemapper/target-words.ts',
  'src/devicemapper/tools/cross-check.ts',
  'src/devicemapper/tools/tool-answer.ts',
  'src/grpc/stream-rules.ts',
  'src/agent/lvm/metadata-text.ts'
]

test('only a defect of ours is to be reported to us', (t) => {
  const asking = sites.filter(({ remedy }) => remedy.some((text) => /\breport\b.*\b(?:it|this|what)\b/.test(text)))
  t.deepEqual([...new Set(asking.map(({ where }) => where.split(':')[0]))].toSorted(), askForReports.toSorted())
  for (const { where, remedy } of sites) {
    t.false(
      remedy.some((text) => text.includes('log lines around')),
      where
    )
  }
  // An internal error is made by `defect` alone, which says so.
  for (const { where, code } of sites) t.not(code, 'DM_INTERNAL', where)
})

test('who has to begin again is told so: what is aborted may not be resumed', (t) => {
  for (const { where, code, remedy } of sites) {
    if (code === undefined || errorRegistry[code as ErrorCode]?.status !== 'ABORTED') continue
    for (const text of remedy) {
      t.regex(
        text,
        /from the beginning|begin again|offset 0|take (?:the snapshot|another)|throw away|look again/,
        `${where}: ${text}`
      )
    }
  }
})

test('every code is used somewhere', (t) => {
  const all = globSync(['src/**/*.ts', 'native/**/*.ts'], { cwd: project })
    .filter((file) => file !== 'src/errors.ts')
    .map((file) => readFileSync(join(project, file), 'utf8'))
    .join('\n')
  // (One of several codes is put together where it depends on what is seen.)
  const prefixes = [...all.matchAll(/`(DM_[A-Z_]+_)\$\{/g)].map(([, prefix = '']) => prefix)
  const isUsed = (code: string) => all.includes(`'${code}'`) || prefixes.some((prefix) => code.startsWith(prefix))
  const unused = Object.keys(errorRegistry).filter((code) => !isUsed(code))
  t.deepEqual(unused, [])
})
