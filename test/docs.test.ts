/**
 * Pages for people, held to what they speak of: every method of a service, every error code, every link and every anchor.
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import { errorRegistry } from '../src/errors.ts'

const project = fileURLToPath(new URL('..', import.meta.url))
const read = (path: string) => readFileSync(join(project, path), 'utf8')
const pages = [
  'README.md',
  ...readdirSync(join(project, 'docs'))
    .filter((name) => name.endsWith('.md'))
    .map((name) => `docs/${name}`)
]

/** As GitHub makes anchors of headings. */
const anchorsOf = (text: string) =>
  [...text.matchAll(/^#+ (.*)$/gm)].map(([, heading = '']) =>
    heading
      .toLowerCase()
      .replace(/[^\p{L}\p{N} _-]/gu, '')
      .replaceAll(' ', '-')
  )

test('every link of README and docs/ leads to a page and a heading that there are', (t) => {
  for (const page of pages) {
    const text = read(page).replace(/^```[^]*?^```/gm, '')
    for (const [, link = ''] of text.matchAll(/\]\(([^)\s]+)\)/g)) {
      if (/^[a-z]+:/.test(link)) continue
      const [path = '', anchor] = link.split('#')
      const target = path === '' ? page : join(dirname(page), path)
      t.true(existsSync(join(project, target)), `${page}: ${link}`)
      if (anchor !== undefined && target.endsWith('.md'))
        t.true(anchorsOf(read(target)).includes(anchor), `${page}: ${link}`)
    }
  }
})

test('docs/integrate.md has every method of the Admin service', (t) => {
  const proto = read('src/grpc/protos/deltamapper/v1/admin.proto')
  const methods = [...proto.matchAll(/^ {2}rpc (\w+)\(/gm)].map(([, name]) => name)
  const [, section = ''] = read('docs/integrate.md').split('## The Admin service')
  const rows = [...section.matchAll(/^\| `([A-Z]\w+)` \|/gm)].map(([, name]) => name)
  t.true(methods.length > 20)
  t.deepEqual(rows, methods)
})

test('docs/troubleshooting.md speaks of error codes that there are', (t) => {
  const codes = [...read('docs/troubleshooting.md').matchAll(/DM_[A-Z_]+/g)].map(([code]) => code)
  t.true(codes.length > 10)
  for (const code of codes) t.true(code in errorRegistry, code)
})
