/**
 * The Dockerfile, as far as it can be looked at without a container engine: what it copies is there and not ignored, and it has what pods ask
 * of it. (That the package works when built and installed elsewhere is in test/package.test.ts.)
 */
import { readFile, stat } from 'node:fs/promises'
import { join, matchesGlob } from 'node:path'
import test from 'ava'
import { project } from './tools.ts'

const text = await readFile(join(project, 'deploy/Dockerfile'), 'utf8')
/** Instructions, with lines that go on put together. */
const instructions = text
  .replaceAll(/\\\n/g, ' ')
  .split('\n')
  .filter((line) => /^[A-Z]+ /.test(line))
const stages = instructions.join('\n').split(/^(?=FROM )/m)

test('what is copied into the image is there, and not ignored', async (t) => {
  const allowed = (await readFile(join(project, '.dockerignore'), 'utf8'))
    .split('\n')
    .filter((line) => line.startsWith('!'))
    .map((line) => line.slice(1))
  const copied = instructions
    .filter((line) => /^COPY (?!--from)/.test(line))
    .flatMap((line) => line.split(' ').slice(1, -1))
  t.true(copied.length >= 8)
  for (const source of copied) {
    await t.notThrowsAsync(() => stat(join(project, source)), source)
    t.true(
      allowed.some((each) => matchesGlob(source, each)),
      `${source} is ignored`
    )
  }
  t.deepEqual(
    allowed.filter((each) => !copied.some((source) => source === each)),
    [],
    'and nothing else is let in'
  )
})

test('everything that the build reads is copied before it', async (t) => {
  const [build = ''] = stages
  const { scripts } = JSON.parse(await readFile(join(project, 'package.json'), 'utf8')) as {
    scripts: { build: string }
  }
  const [, script = ''] = /^node (\S+)$/.exec(scripts.build) ?? []
  t.true(build.includes(`COPY ${script} `) && build.includes(`node ${script}`))
  const { include } = JSON.parse(await readFile(join(project, 'tsconfig.build.json'), 'utf8')) as { include: string[] }
  for (const folder of include) t.true(build.includes(`COPY ${folder} ${folder}`), folder)
})

test('the last stage has Node 24, LVM and the tools, no build tools, and runs as nobody', (t) => {
  const last = stages.at(-1) ?? ''
  t.is(stages.length, 2)
  t.regex(last, /^FROM docker\.io\/library\/node:24-\w+-slim\n/)
  for (const name of ['lvm2', 'thin-provisioning-tools']) t.regex(last, new RegExp(`install .*\\b${name}\\b`))
  t.regex(last, /--no-install-recommends/)
  t.regex(last, /^USER 65532:65532$/m)
  t.regex(last, /^ENTRYPOINT \["deltamapper"\]$/m)
  t.notRegex(last, /npm (ci|install)/)
})
