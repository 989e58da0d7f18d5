import test from 'ava'
import { DeltamapperError } from '../../src/errors.ts'
import { Readiness } from '../../src/monitoring/readiness.ts'

test('ready is who has nothing against it', async (t) => {
  const readiness = new Readiness()
  t.deepEqual(await readiness.problems(), [])
  readiness.add('one', () => undefined)
  readiness.add('other', async () => undefined)
  t.deepEqual(await readiness.problems(), [])
})

test('every check that fails says why, by its name; the last of a name counts', async (t) => {
  const readiness = new Readiness()
  readiness.add('one', () => 'it is broken; mend it')
  readiness.add('two', () => undefined)
  readiness.add('three', async () => {
    throw new DeltamapperError('DM_CATALOG_UNAVAILABLE', 'the disk is full', 'free space')
  })
  readiness.add('four', () => {
    throw new TypeError('undefined is no function')
  })
  const problems = await readiness.problems()
  t.deepEqual(problems.slice(0, 2), [
    'one: it is broken; mend it',
    'three: DM_CATALOG_UNAVAILABLE: the disk is full; free space'
  ])
  t.regex(problems[2], /^four: DM_INTERNAL: undefined is no function; /)
  for (const name of ['one', 'three', 'four']) readiness.add(name, () => undefined)
  t.deepEqual(await readiness.problems(), [])
})

test('a check that does not answer has failed', async (t) => {
  const readiness = new Readiness(20)
  readiness.add('hanging', () => new Promise(() => undefined))
  const [problem] = await readiness.problems()
  t.regex(problem, /^hanging: it has not answered within 20 ms; /)
})
