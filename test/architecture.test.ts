/** `docs/architecture.md` names files in order: each that is named in full exists, and the ways lead where they say. */
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'

const projectFolder = join(import.meta.dirname, '..')
const page = readFileSync(join(projectFolder, 'docs/architecture.md'), 'utf8')

/** The text under a heading, up to the next one of its level or above. */
function under(heading: string): string {
  const level = /^#+/.exec(heading)?.[0].length ?? 0
  const [, after = ''] = page.split(`\n${heading}\n`)
  const end = new RegExp(`^#{1,${level}} `, 'm').exec(after)?.index
  return after.slice(0, end)
}

/** The files and folders that a text names in full, in order. */
function named(text: string): string[] {
  const paths = text.matchAll(/`((?:src|native|test|docs|deploy|scripts)\/[^`]*)`/g)
  return [...paths].map(([, path = '']) => path).filter((path) => !path.includes('*'))
}

/** The modules that a file loads, as paths in the project. */
function imports(file: string): string[] {
  const source = readFileSync(join(projectFolder, file), 'utf8')
  return [...source.matchAll(/(?:from|import\() ?'(\.[^']+)'/g)].map(([, path = '']) => join(file, '..', path))
}

test('each file and folder that the page names exists', (t) => {
  const all = named(page)
  t.true(all.length > 100)
  for (const path of all) {
    if (path.includes('NAME')) continue
    t.true(existsSync(join(projectFolder, path)), `there is no ${path}`)
  }
})

const ways = ['### Live thin pool', '### Tracked volume (dm-era)', '### Recorded pool', '### Router']

for (const way of ways) {
  test(`a way from request to answer: ${way.slice(4)}`, (t) => {
    const steps = under(way)
      .split('\n')
      .filter((line) => /^\s*(\d+\.|-) `/.test(line))
    const files = steps.map((line) => named(line)[0] ?? '')
    t.true(files.length >= 7, `${files.length} steps`)
    t.is(files[0], 'src/grpc/snapshot-metadata.ts')
    t.is(files.at(-1), 'src/grpc/snapshot-metadata.ts')
    // What puts an agent or a router together loads what is handed to others.
    const parts = [...files, 'src/agent/agent.ts', 'src/agent/live-node.ts', 'src/router/router.ts']
    // Nobody is named who has no part in it: each is loaded by, or loads, another step of the way, or is a thread's program.
    for (const file of files) {
      const meets = parts.some(
        (other) => other !== file && (imports(file).includes(other) || imports(other).includes(file))
      )
      t.true(meets || file === 'src/agent/walker-thread.ts', `${file} stands alone`)
    }
  })
}

for (const how of ['## Adding a target', '## Adding a CSI driver', '## Adding an output']) {
  test(`the files to write and to change: ${how.slice(3)}`, (t) => {
    const text = under(how)
    const numbers = [...text.matchAll(/^(\d+)\. /gm)].map(([, number]) => Number(number))
    t.deepEqual(
      numbers,
      numbers.map((_, i) => i + 1)
    )
    t.true(
      named(text).some((path) => path.includes('NAME')),
      'the new file'
    )
    t.true(named(text).filter((path) => !path.includes('NAME')).length >= 3, 'an example, the registry, a test')
  })
}

test('the registries of targets have those that the page says: who answers, and the walk of each', (t) => {
  const listed = {
    'src/agent/targets.ts': [
      'src/agent/answers/thin-snapshots.ts',
      'src/agent/answers/tracked-volume.ts',
      'src/agent/answers/classic-snapshot.ts'
    ],
    'src/agent/walks/registry.ts': ['src/agent/walks/thin-walk.ts', 'src/agent/walks/history-walk.ts']
  }
  for (const [registry, files] of Object.entries(listed)) {
    for (const file of files) {
      t.true(imports(registry).includes(file), file)
      t.true(named(page).includes(file), `the page does not name ${file}`)
    }
  }
})

test('what a room of the agent uses is what the page says', (t) => {
  const rows = [...under("### The agent's rooms").matchAll(/^\| `(\w[\w-]*)\/` *\|[^|]+\|([^|]*)\|$/gm)]
  const rooms = rows.map(([, room = '']) => room)
  t.true(rooms.length >= 9)
  for (const [, room = '', uses = ''] of rows) {
    if (uses.includes('all of these')) continue
    t.deepEqual(
      uses
        .split(',')
        .map((each) => each.trim())
        .filter((each) => each !== ''),
      roomsUsedBy(room).filter((each) => rooms.includes(each)),
      room
    )
  }
})

/** The rooms of src/agent that a room of it imports from, in order of their names. */
function roomsUsedBy(room: string): string[] {
  const folder = `src/agent/${room}`
  const names = readdirSync(join(projectFolder, folder), { recursive: true, encoding: 'utf8' })
  const files = names.filter((each) => each.endsWith('.ts')).map((each) => `${folder}/${each}`)
  const used = files.flatMap(imports).map((path) => /^src\/agent\/([^/]+)\//.exec(path)?.[1] ?? room)
  return [...new Set(used)].filter((each) => each !== room).sort()
}
