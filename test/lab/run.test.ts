/**
 * The command line of the lab, as far as it can be asked without booting.
 */
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import test from 'ava'
import { projectFolder } from './packages.ts'
import { commandFor, labVariables, parseSize } from './run.ts'

test('sizes', (t) => {
  t.is(parseSize('4096'), 4096)
  t.is(parseSize('3k'), 3072)
  t.is(parseSize('512M'), 512 * 2 ** 20)
  t.is(parseSize('2G'), 2 ** 31)
  t.is(parseSize('1TiB'), 2 ** 40)
  for (const each of ['', '0', '-1', '1.5G', '1X', 'G', '99999999999T'])
    t.throws(() => parseSize(each), undefined, each)
})

test('what runs a file follows from its name', (t) => {
  const bin = `${projectFolder}/node_modules/.bin`
  t.deepEqual(commandFor(`${projectFolder}/test/kernel/lab.test.ts`, ['--match', 'x']), [
    ...[`${bin}/node`, 'scripts/ava.mjs', '--config', 'ava.lab.config.js', '--tap', 'test/kernel/lab.test.ts'],
    ...['--match', 'x']
  ])
  t.deepEqual(commandFor('/a/b.ts', ['c']), [`${bin}/node`, '/a/b.ts', 'c'])
  t.deepEqual(commandFor('/a/b.sh', []), ['bash', '/a/b.sh'])
})

test('of the environment, what is meant for the lab is passed on', (t) => {
  t.deepEqual(labVariables({ LAB_SEED: '7', HOME: '/root', NODE_OPTIONS: '--inspect' }), {
    NODE_COMPILE_CACHE: `${projectFolder}/.cache/compiled`,
    LAB_SEED: '7'
  })
})

for (const [words, message] of [
  [[], /no FILE given/],
  [['/does/not/exist'], /does not exist/],
  [['--disk', 'huge', 'package.json'], /--disk wants a size/],
  [['--memory', '0', 'package.json'], /--memory wants a whole number/],
  [['--release', 'potato', 'package.json'], /no release potato in the lab: give one of trixie, forky, sid/],
  [['--colour', 'package.json'], /--colour/]
] as const) {
  test(`bad usage is said at once: ${words.join(' ') || 'nothing'}`, async (t) => {
    const run = promisify(execFile)(process.execPath, ['test/lab/run.ts', ...words], { cwd: projectFolder })
    const error = (await t.throwsAsync(run)) as unknown as { code: number; stdout: string; stderr: string }
    t.is(error.code, 2)
    t.is(error.stdout, '')
    t.regex(error.stderr, message)
  })
}
