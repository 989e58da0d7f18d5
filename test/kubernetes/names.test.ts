/**
 * What is a name for the API server, and what would be another path or none.
 */
import test from 'ava'
import { DeltamapperError, type ErrorCode } from '../../src/errors.ts'
import {
  checkAddress,
  checkHandle,
  checkNamespace,
  checkServiceAccount,
  checkSnapshotName
} from '../../src/kubernetes/names.ts'

const outcome = (check: (text: string) => void, text: string): ErrorCode | 'taken' => {
  try {
    check(text)
    return 'taken'
  } catch (error) {
    return (error as DeltamapperError).code
  }
}

const label = 'a'.repeat(63)
const checks: [what: string, check: (text: string) => void, taken: string[], refused: string[]][] = [
  [
    'namespace',
    checkNamespace,
    ['shop', 'a', '0-1', label],
    ['..', '.', 'a.b', 'Shop', '-a', 'a-', 'a/b', `${label}a`, 'ä']
  ],
  [
    'VolumeSnapshot',
    checkSnapshotName,
    ['db-monday', 'a.b', `${label}a`, `${label}.`.repeat(3) + label.slice(0, 61)],
    ['..', 'a..b', '.a', 'a.', 'A', 'a b', 'a/b', 'a%2fb', 'a\n', 'a'.repeat(254)]
  ],
  [
    'service account',
    checkServiceAccount,
    ['shop/backup', 'shop/a.b'],
    ['', 'x', 'a/', '/a', 'a/b/c', '../b', 'a/..', 'a.b/c']
  ],
  ['address', checkAddress, ['localhost:6443', '[::1]:1'], ['', 'junk', 'localhost:99999', 'http://x:1', ':::']],
  ['handle', checkHandle, ['pvc-1@snapshot-7', '..', ' '], []]
]
for (const [what, check, taken, refused] of checks) {
  test(`${what}: what is taken for one`, (t) => {
    for (const text of taken) t.is(outcome(check, text), 'taken', text)
    for (const text of refused) t.is(outcome(check, text), 'DM_ARGUMENT_INVALID', text)
  })
}

test('what is empty is missing', (t) => {
  for (const check of [checkNamespace, checkSnapshotName, checkHandle]) t.is(outcome(check, ''), 'DM_ARGUMENT_MISSING')
})
