import test from 'ava'
import { counted, exactSize, humanSize, percentage } from '../../../src/cli/command-line/quantities.ts'

test('sizes have the largest unit that keeps them above 1, and one decimal place where they are not exact', (t) => {
  const sizes: [number, string][] = [
    [0, '0 B'],
    [1023, '1023 B'],
    [1024, '1 KiB'],
    [1536, '1.5 KiB'],
    [65536, '64 KiB'],
    [2 ** 20 - 1, '1.0 MiB'],
    [2 ** 30 + 1, '1.0 GiB'],
    [3 * 2 ** 40, '3 TiB'],
    [Number.MAX_SAFE_INTEGER, '8.0 PiB']
  ]
  for (const [bytes, text] of sizes) t.is(humanSize(bytes), text)
})

test('exact sizes have the largest unit that divides them', (t) => {
  const sizes: [number, string][] = [
    [0, '0 B'],
    [1000, '1000 B'],
    [1280 * 2 ** 20, '1280 MiB'],
    [2 ** 50, '1 PiB'],
    [2 ** 40 + 65536, '1073741888 KiB']
  ]
  for (const [bytes, text] of sizes) t.is(exactSize(bytes), text)
})

test('only nothing is 0 %, and only everything is 100 %', (t) => {
  const parts: [number, number, string][] = [
    [0, 0, '0 %'],
    [0, 5, '0 %'],
    [5, 5, '100 %'],
    [1, 2 ** 40, '<0.01 %'],
    [2 ** 40 - 1, 2 ** 40, '>99.9 %'],
    [1, 3, '33.3 %'],
    [1, 30, '3.33 %']
  ]
  for (const [part, whole, text] of parts) t.is(percentage(part, whole), text)
})

test('one is singular', (t) => {
  t.deepEqual(
    [counted(0, 'extent'), counted(1, 'extent'), counted(1n, 'extent'), counted(2, 'extent')],
    ['0 extents', '1 extent', '1 extent', '2 extents']
  )
})
