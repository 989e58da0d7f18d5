/**
 * Reading XML ends when nobody wants it any more: also of a file, of which much may be read before there is any answer.
 */
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import { openXmlInput } from '../../../src/cli/answers/xml-input.ts'
import { testFolder } from '../../support/test-folder.ts'

const folder = testFolder(test)

test('a file is read as often as it takes, until the signal', async (t) => {
  const path = join(folder, 'long.xml')
  await writeFile(path, ' '.repeat(2 ** 20))
  const call = new AbortController()
  const input = await openXmlInput(path, call.signal)
  t.teardown(() => input.close())
  for (let time = 0; time < 2; time++) {
    let bytes = 0
    for await (const chunk of input.bytes()) bytes += chunk.length
    t.is(bytes, 2 ** 20)
  }
  const reading = input.bytes()[Symbol.asyncIterator]()
  await reading.next()
  const why = new Error('the time is up')
  call.abort(why)
  t.is(await t.throwsAsync(async () => reading.next()), why)
})
