import test from 'ava'
import { columns, facts } from '../../../src/cli/output/columns.ts'

test('columns are as wide as what stands in them, numbers to the right', (t) => {
  const heads = [['NAME'], ['SIZE', 'right'], ['DEVICE']] as const
  const rows = [
    ['a', '12345', 'x'],
    ['longer', '1', '']
  ]
  t.is(columns(heads, rows), 'NAME     SIZE  DEVICE\na       12345  x\nlonger      1  \n')
  t.is(columns(heads, []), 'NAME  SIZE  DEVICE\n')
})

test('what others have named steers no terminal', (t) => {
  t.is(columns([['NAME']], [['a\x1b[2J\nb']]), 'NAME\na [2J b\n')
  t.is(
    facts([
      ['pool', 'a\r\nb'],
      ['s', '1']
    ]),
    'pool  a b\ns     1\n'
  )
})
