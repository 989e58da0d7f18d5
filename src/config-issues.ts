/**
 * What is wrong with a configuration, told to whoever wrote the file: the field, its line, the field that was probably
 * meant, and how a value is written. The schema knows what is allowed; only the text knows where it stands.
 */
import { isMap, isNode, isScalar, LineCounter, parse, parseDocument, type Document } from 'yaml'
import { z } from 'zod'

type Issue = z.core.$ZodIssue
type Path = readonly PropertyKey[]

/**
 * The fields of a text, YAML or JSON, as a schema has them.
 *
 * @throws Error that says in one line what is wrong, and where
 */
export function fieldsOf<T extends z.ZodType>(text: string, schema: T): z.output<T> {
  const result = schema.safeParse(parse(text) ?? {})
  if (result.success) return result.data
  throw new Error(describeIssues(result.error.issues, schema, text))
}

/**
 * Fields that the schema does not know, where others than its own are allowed, and that are most likely meant to be one
 * of its own. One sentence for each.
 */
export function misspeltFields(text: string, schema: z.ZodType): string[] {
  const lines = new LineCounter()
  const document = parseDocument(text, { lineCounter: lines })
  const look = (node: unknown, path: Path): string[] => {
    const items = (node as { items?: readonly { key?: unknown; value?: unknown }[] } | undefined)?.items
    if (items === undefined) return []
    if (!isMap(node)) return items.flatMap((each, i) => look(each, [...path, i]))
    const known = fieldsAt(schema, path)
    const written = items.flatMap(({ key }) => (isScalar(key) ? [String(key.value)] : []))
    return items.flatMap(({ key, value }) => {
      if (!isScalar(key)) return []
      const name = String(key.value)
      if (known.includes(name)) return look(value, [...path, name])
      const meant = nearest(
        name,
        known.filter((each) => !written.includes(each))
      )
      const line = lines.linePos(key.range?.[0] ?? 0).line
      return meant === undefined ? [] : [`Unrecognized key: "${name}", is ${meant} meant? (line ${line})`]
    })
  }
  return look(document.contents, [])
}

/** One sentence for each mistake. @param text the file's; empty without one */
export function describeIssues(issues: readonly Issue[], schema: z.ZodType, text: string): string {
  const lines = new LineCounter()
  const document = parseDocument(text, { lineCounter: lines })
  const lineOf = (path: Path): string[] => {
    const start = keyStart(document, path)
    return start === undefined ? [] : [`line ${lines.linePos(start).line}`]
  }
  const say = (message: string, field: Path, written: Path): string => {
    const place = [...(field.length > 0 ? [z.core.toDotPath(field)] : []), ...lineOf(written)].join(', ')
    return place === '' ? message : `${message} (${place})`
  }
  const sayUnknown = (path: Path, key: string): string => {
    const meant = nearest(key, fieldsAt(schema, path))
    return say(`Unrecognized key: "${key}"${meant === undefined ? '' : `, is ${meant} meant?`}`, path, [...path, key])
  }
  return issues
    .flatMap((issue) =>
      issue.code === 'unrecognized_keys'
        ? issue.keys.map((key) => sayUnknown(issue.path, key))
        : [`${say(issue.message, issue.path, issue.path)}${formOf(issue, document)}${writtenAs(issue.path, document)}`]
    )
    .join('; ')
}

/** How the value would be written right, where YAML took it for something else than was meant. */
function formOf(issue: Issue, document: Document): string {
  if (issue.code !== 'invalid_type') return ''
  const node = document.getIn(issue.path, true)
  if (!isScalar(node) || node.source === undefined) return ''
  const { source, value } = node
  if (issue.expected === 'string') return `: put it in quotes, "${source}"`
  if (issue.expected === 'array') return `: write it as a list, [${source}]`
  const isText = typeof value === 'string'
  if (['number', 'int'].includes(issue.expected) && isText && source !== '' && !Number.isNaN(Number(source))) {
    return `: write it without quotes, ${source}`
  }
  if (issue.expected === 'boolean' && isText && /^(yes|no|on|off|true|false)$/i.test(source))
    return ': true or false, without quotes'
  return ''
}

/** How a field that is missing was probably written. */
function writtenAs(path: Path, document: Document): string {
  const name = path.at(-1)
  const beside = document.getIn(path.slice(0, -1), true)
  if (typeof name !== 'string' || !isMap(beside) || beside.has(name)) return ''
  const names = beside.items.flatMap(({ key }) => (isScalar(key) ? [String(key.value)] : []))
  const written = nearest(name, names)
  return written === undefined ? '' : `: is "${written}" meant to be it?`
}

/** Where a field's name begins in the text; a value's, in a list. Of a field that is missing: what it is missing in. */
function keyStart(document: Document, path: Path): number | undefined {
  const parent = document.getIn(path.slice(0, -1), true)
  const name = path.at(-1)
  if (typeof parent === 'object' && parent !== null && 'items' in parent) {
    for (const item of parent.items as { key?: unknown }[]) {
      if (isScalar(item.key) && item.key.value === name) return item.key.range?.[0]
    }
  }
  const node = document.getIn(path, true)
  if (isNode(node)) return node.range?.[0]
  return path.length < 2 ? undefined : keyStart(document, path.slice(0, -1))
}

/** The names of the fields that the schema knows at a path. */
function fieldsAt(schema: z.ZodType, path: Path): string[] {
  let at: Definition | undefined = unwrapped(schema)
  for (const name of path) {
    const inner: unknown = at?.shape?.[String(name)] ?? at?.valueType ?? at?.element
    at = inner === undefined ? undefined : unwrapped(inner as z.ZodType)
  }
  return Object.keys(at?.shape ?? {})
}

interface Definition {
  readonly innerType?: z.ZodType
  readonly shape?: Readonly<Record<string, z.ZodType>>
  readonly valueType?: z.ZodType
  readonly element?: z.ZodType
}

/** Without what makes a field optional, or gives it its default. */
function unwrapped(schema: z.ZodType): Definition {
  let definition = schema.def as Definition
  while (definition.innerType !== undefined) definition = definition.innerType.def as Definition
  return definition
}

/** The name that is most like the one that was written: two letters apart at most, or one that begins like it. */
function nearest(written: string, names: readonly string[]): string | undefined {
  const small = written.toLowerCase()
  const [best] = names
    .map((name) => ({ name, distance: distance(small, name.toLowerCase()) }))
    .toSorted((one, other) => one.distance - other.distance)
  if (best !== undefined && best.distance <= Math.min(2, small.length / 2)) return best.name
  return small.length < 3 ? undefined : names.find((name) => name.toLowerCase().startsWith(small))
}

/** Letters to insert, remove or replace (Levenshtein). */
function distance(one: string, other: string): number {
  let row = Array.from({ length: other.length + 1 }, (_, i) => i)
  for (const [i, letter] of [...one].entries()) {
    const next = [i + 1]
    for (let j = 0; j < other.length; j++) {
      next.push(Math.min((next[j] ?? 0) + 1, (row[j + 1] ?? 0) + 1, (row[j] ?? 0) + (letter === other[j] ? 0 : 1)))
    }
    row = next
  }
  return row[other.length] ?? 0
}
