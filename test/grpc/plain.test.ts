import { create, fromBinary, toBinary } from '@bufbuild/protobuf'
import test from 'ava'
import {
  CreatePoolRequestSchema,
  ListPoolsResponseSchema,
  PoolSchema,
  PoolState,
  VolumeSchema,
  WhenFull
} from '../../src/grpc/generated/deltamapper/v1/admin_pb.ts'
import { CountBeyond, fromPlain, toPlain } from '../../src/grpc/plain.ts'
import { fullPool, inactivePool, snapshot } from './admin-backend.ts'

test('counts are numbers, ids of 64 bits are text, enumerations are words, and what is not set is left out', (t) => {
  const message = create(PoolSchema, {
    ...{ name: 'tank', blockBytes: 2n ** 53n - 1n, createdAtMs: -1n, transactionId: '18446744073709551615' },
    ...{ state: PoolState.OUT_OF_DATA_SPACE, whenFull: WhenFull.QUEUE, usage: { heldMetadataSnapshot: 0n } }
  })
  const plain = toPlain(PoolSchema, message)
  t.is(plain.blockBytes, Number.MAX_SAFE_INTEGER)
  t.is(plain.createdAtMs, -1)
  t.is(plain.transactionId, '18446744073709551615')
  t.is(plain.state, 'out-of-data-space')
  t.is(plain.whenFull, 'queue')
  t.is(plain.usage?.heldMetadataSnapshot, 0)
  t.false('usage' in toPlain(PoolSchema, create(PoolSchema)))
  t.false('heldMetadataSnapshot' in (toPlain(PoolSchema, create(PoolSchema, { usage: {} })).usage ?? {}))
})

test('there and back, over the wire, it is what it was', (t) => {
  const pools = { pools: [fullPool, inactivePool] }
  const bytes = toBinary(ListPoolsResponseSchema, fromPlain(ListPoolsResponseSchema, pools))
  t.deepEqual<object, object>(toPlain(ListPoolsResponseSchema, fromBinary(ListPoolsResponseSchema, bytes)), pools)
  t.deepEqual<object, object>(toPlain(VolumeSchema, fromPlain(VolumeSchema, snapshot)), snapshot)
})

test('a count that no number holds is refused under its name', (t) => {
  for (const beyond of [2n ** 53n, 2n ** 64n - 1n]) {
    const request = create(CreatePoolRequestSchema, { lowWaterBytes: beyond })
    const error = t.throws(() => toPlain(CreatePoolRequestSchema, request), { instanceOf: CountBeyond })
    t.like(error, { field: 'low_water_bytes', digits: String(beyond) })
  }
})

test('a word of a newer version is its number; one that there is not is a defect', (t) => {
  t.is<string, string>(toPlain(PoolSchema, create(PoolSchema, { state: 99 as PoolState })).state, '99')
  t.throws(() => fromPlain(PoolSchema, { ...fullPool, state: 'melting' as 'failed' }), { instanceOf: RangeError })
  for (const state of Object.values(PoolState)) {
    t.is(fromPlain(PoolSchema, toPlain(PoolSchema, create(PoolSchema, { state }))).state, state)
  }
})

test('a count that is no whole number is a defect', (t) => {
  for (const sizeBytes of [1.5, NaN]) {
    t.throws(() => fromPlain(VolumeSchema, { ...snapshot, sizeBytes }), { instanceOf: RangeError })
  }
})
