import { join } from 'node:path'
import test from 'ava'
import { openDatabase } from '../../../src/agent/catalog/database.ts'
import { leaseVerdict } from '../../../src/agent/catalog/lease.ts'
import {
  beginLease,
  beginRelease,
  clearLease,
  confirmLease,
  findLease,
  keepLease,
  listLeases
} from '../../../src/agent/catalog/lease-records.ts'
import { testFolder } from './examples.ts'

test('a lease is recorded around both messages, and every record survives reopening', (t) => {
  const path = join(testFolder(t), 'catalog.db')
  let database = openDatabase(path)
  const reopen = () => {
    database.close()
    database = openDatabase(path)
  }
  t.teardown(() => {
    database.close()
  })
  const slot = { heldRoot: 77, facts: 'state 1' }
  const lease = { device: 'dm:pool', purpose: 'thin_delta', factsBefore: 'state 0' }

  beginLease(database, lease, 123)
  reopen()
  t.deepEqual(findLease(database, 'dm:pool'), {
    ...lease,
    ...{ state: 'reserving', heldRoot: undefined, factsHeld: undefined, takenAt: 123 }
  })
  t.like(leaseVerdict(findLease(database, 'dm:pool'), slot), { whose: 'foreign', ambiguous: true })

  confirmLease(database, 'dm:pool', { heldRoot: 77, factsHeld: 'state 1' })
  reopen()
  t.like(leaseVerdict(findLease(database, 'dm:pool'), slot), { whose: 'ours' })
  t.like(leaseVerdict(findLease(database, 'dm:other'), slot), { whose: 'foreign', ambiguous: false })

  beginRelease(database, 'dm:pool')
  reopen()
  t.like(leaseVerdict(findLease(database, 'dm:pool'), slot), { whose: 'foreign', ambiguous: true })

  keepLease(database, 'dm:pool')
  reopen()
  t.like(leaseVerdict(findLease(database, 'dm:pool'), slot), { whose: 'ours' })

  clearLease(database, 'dm:pool')
  reopen()
  t.deepEqual(listLeases(database), [])
})

test('one device, one lease; others have their own', (t) => {
  const database = openDatabase(join(testFolder(t), 'catalog.db'))
  t.teardown(() => {
    database.close()
  })
  const lease = { device: 'dm:pool', purpose: 'thin_delta', factsBefore: '' }
  beginLease(database, lease, 1)
  t.throws(
    () => {
      beginLease(database, { ...lease, purpose: 'another' }, 2)
    },
    { code: 'DM_DEVICE_BUSY', message: /reserving, for thin_delta/ }
  )
  beginLease(database, { ...lease, device: 'era:vol' }, 3)
  t.deepEqual(
    listLeases(database).map(({ device, takenAt }) => [device, takenAt]),
    [
      ['dm:pool', 1],
      ['era:vol', 3]
    ]
  )
})

test('steps out of order are a defect, and change nothing', (t) => {
  const database = openDatabase(join(testFolder(t), 'catalog.db'))
  t.teardown(() => {
    database.close()
  })
  const held = { heldRoot: 1, factsHeld: '' }
  t.throws(
    () => {
      confirmLease(database, 'dm:pool', held)
    },
    { code: 'DM_INTERNAL' }
  )
  beginLease(database, { device: 'dm:pool', purpose: '', factsBefore: '' }, 1)
  t.throws(
    () => {
      beginRelease(database, 'dm:pool')
    },
    { code: 'DM_INTERNAL' }
  )
  confirmLease(database, 'dm:pool', held)
  t.throws(
    () => {
      confirmLease(database, 'dm:pool', held)
    },
    { code: 'DM_INTERNAL' }
  )
  t.throws(
    () => {
      keepLease(database, 'dm:pool')
    },
    { code: 'DM_INTERNAL' }
  )
  t.like(findLease(database, 'dm:pool'), { state: 'held', heldRoot: 1 })
  // Clearing what is not there is not: after a crash it may have been done before.
  clearLease(database, 'dm:pool')
  clearLease(database, 'dm:pool')
})
