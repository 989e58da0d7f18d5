import test from 'ava'

import { DEVICE_DETAILS_SIZE, MAX_DEVICES, parseDeviceDetails } from '../../../src/devicemapper/thin/device-details.ts'

test('the four fields of a record, wherever it lies', (t) => {
  // mapped_blocks u64, transaction_id u64, creation_time u32, snapshotted_time u32, little endian.
  const record = Buffer.from('0100000002000000' + 'ffffffffffffffff' + '03000000' + 'feffffff', 'hex')
  t.is(record.length, DEVICE_DETAILS_SIZE)
  const details = {
    mappedBlocks: 2 ** 33 + 1,
    transactionId: 2n ** 64n - 1n,
    creationTime: 3,
    snapshottedTime: 2 ** 32 - 2
  }
  t.deepEqual(parseDeviceDetails(record, 0), details)
  t.deepEqual(parseDeviceDetails(Buffer.concat([Buffer.alloc(4072, 0xee), record]), 4072), details)
})

test('thin device ids have 24 bits', (t) => {
  t.is(MAX_DEVICES, 16777216)
})
