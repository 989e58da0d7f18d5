/** Status lines as real kernels print them, and lines that no kernel prints. */
import test from 'ava'
import fc from 'fast-check'
import { DeltamapperError } from '../../../src/errors.ts'
import { parsePoolStatus, parseThinStatus, type PoolNumbers } from '../../../src/devicemapper/thin/status.ts'

const unknown = { instanceOf: DeltamapperError, code: 'DM_STATUS_UNKNOWN' }

const working: PoolNumbers = {
  state: 'working',
  transactionId: 1n,
  usedMetadataBlocks: 141,
  totalMetadataBlocks: 1024,
  usedDataBlocks: 3,
  totalDataBlocks: 1024,
  heldRoot: undefined,
  mode: 'read-write',
  discards: 'passed-down',
  whenFull: 'queue',
  needsCheck: false,
  metadataLowWaterBlocks: 256
}

test('a pool of each generation of kernels', (t) => {
  const line = '1 141/1024 3/1024 - rw discard_passdown queue_if_no_space'
  t.deepEqual(parsePoolStatus(`${line} - 256 `), working, 'today')
  t.deepEqual(parsePoolStatus(`${line} - `), { ...working, metadataLowWaterBlocks: undefined }, 'before the watermark')
  t.deepEqual(
    parsePoolStatus(`${line} `),
    { ...working, needsCheck: undefined, metadataLowWaterBlocks: undefined },
    '3.19'
  )
  t.deepEqual(parsePoolStatus(`${line} - 256 something new`), working, 'tomorrow')
})

test('modes, discards, what happens when full, a held metadata snapshot', (t) => {
  t.deepEqual(parsePoolStatus('7 9/64 8/8 42 out_of_data_space no_discard_passdown error_if_no_space - 16 '), {
    ...working,
    transactionId: 7n,
    usedMetadataBlocks: 9,
    totalMetadataBlocks: 64,
    usedDataBlocks: 8,
    totalDataBlocks: 8,
    heldRoot: 42,
    mode: 'out-of-data-space',
    discards: 'mapping-only',
    whenFull: 'error',
    metadataLowWaterBlocks: 16
  })
  t.like(parsePoolStatus('0 1/2 0/8 - ro ignore_discard queue_if_no_space needs_check 16'), {
    mode: 'read-only',
    discards: 'ignored',
    needsCheck: true
  })
})

test('a pool that failed, and one that cannot say', (t) => {
  t.deepEqual(parsePoolStatus('Fail'), { state: 'failed' })
  t.deepEqual(parsePoolStatus('Error'), { state: 'unknown' })
  t.deepEqual(parsePoolStatus('1 141/1024 3/1024 Error'), { state: 'unknown' }, 'an error half-way')
})

test('a thin device', (t) => {
  t.deepEqual(parseThinStatus('384 383'), { state: 'working', mappedSectors: 384, highestMappedSector: 383 })
  t.deepEqual(parseThinStatus('0 -'), { state: 'working', mappedSectors: 0, highestMappedSector: undefined })
  t.deepEqual(parseThinStatus('Fail'), { state: 'failed' })
  t.deepEqual(parseThinStatus('Error'), { state: 'unknown' })
  t.deepEqual(parseThinStatus('-'), { state: 'unknown' })
})

test('what is not understood is never guessed', (t) => {
  const good = '1 141/1024 3/1024 - rw discard_passdown queue_if_no_space - 256'.split(' ')
  for (let length = 0; length < 7; length++) {
    t.throws(() => parsePoolStatus(good.slice(0, length).join(' ')), unknown, `cut after ${length} words`)
  }
  const wrong = ['-1', '1025/1024', '3', 'none', 'wr', 'discard', 'panic', 'check', 'low']
  for (const [index, word] of wrong.entries()) {
    const error = t.throws(() => parsePoolStatus(good.with(index, word).join(' ')), unknown, word)
    t.true(error.message.includes(JSON.stringify(word)), error.message)
  }
  for (const word of [
    '1/',
    '/1',
    '1/2/3',
    '9007199254740993/9007199254740994',
    '1e3/2e3',
    '0x1/0x2',
    ' 1/2'.repeat(2)
  ]) {
    t.throws(() => parsePoolStatus(good.with(1, word).join(' ')), unknown, word)
  }
  t.throws(() => parsePoolStatus(good.with(0, '18446744073709551616').join(' ')), unknown)
  t.throws(() => parsePoolStatus(good.with(4, 'constructor').join(' ')), unknown)
  for (const line of ['', '384', '384 x', '- 384', 'fail', '1.5 2'])
    t.throws(() => parseThinStatus(line), unknown, line)
})

test('numbers come back as they were printed', (t) => {
  const count = fc.maxSafeNat()
  const pair = fc.tuple(count, count).map(([one, other]) => [Math.min(one, other), Math.max(one, other)] as const)
  fc.assert(
    fc.property(
      fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
      pair,
      pair,
      fc.option(count, { nil: undefined }),
      fc.option(count, { nil: undefined }),
      (transactionId, metadata, data, heldRoot, metadataLowWaterBlocks) => {
        const tail = metadataLowWaterBlocks === undefined ? '' : ` - ${metadataLowWaterBlocks}`
        const numbers = `${transactionId} ${metadata.join('/')} ${data.join('/')} ${heldRoot ?? '-'}`
        t.like(parsePoolStatus(`${numbers} rw discard_passdown queue_if_no_space${tail} `), {
          transactionId,
          usedMetadataBlocks: metadata[0],
          totalMetadataBlocks: metadata[1],
          usedDataBlocks: data[0],
          totalDataBlocks: data[1],
          heldRoot,
          metadataLowWaterBlocks
        })
        const thin = { state: 'working', mappedSectors: data[0], highestMappedSector: heldRoot } as const
        t.deepEqual(parseThinStatus(`${data[0]} ${heldRoot ?? '-'}`), thin)
      }
    )
  )
})

test('any line is either understood or refused', (t) => {
  const word = fc.oneof(
    fc.constantFrom(
      'rw',
      'ro',
      '-',
      'Fail',
      'Error',
      'needs_check',
      'discard_passdown',
      'queue_if_no_space',
      '1',
      '1/2'
    ),
    fc.string()
  )
  fc.assert(
    fc.property(fc.array(word, { maxLength: 10 }), (words) => {
      for (const parse of [parsePoolStatus, parseThinStatus]) {
        try {
          t.true(['working', 'failed', 'unknown'].includes(parse(words.join(' ')).state))
        } catch (error) {
          t.true(error instanceof DeltamapperError && error.code === 'DM_STATUS_UNKNOWN')
        }
      }
    })
  )
})
