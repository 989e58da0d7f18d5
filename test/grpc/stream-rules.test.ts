import test from 'ava'
import { DeltamapperError } from '../../src/errors.ts'
import { BlockMetadataMessage } from '../../src/grpc/block-metadata.ts'
import { StreamRules } from '../../src/grpc/stream-rules.ts'

type Extents = [offset: number, size: number][]

function message(extents: Extents, { type = 2, capacityBytes = 1000 } = {}): BlockMetadataMessage {
  const made = new BlockMetadataMessage()
  made.type = type
  made.capacityBytes = capacityBytes
  for (const [offset, size] of extents) {
    made.offsets[made.count] = offset
    made.sizes[made.count] = size
    made.count++
  }
  return made
}

function check(messages: BlockMetadataMessage[], { startingOffset = 0, maxResults = 0 } = {}) {
  const rules = new StreamRules(startingOffset, maxResults)
  for (const one of messages) rules.check(one)
}

test('streams that obey', (t) => {
  t.notThrows(() => check([message([])]))
  t.notThrows(() => check([message([]), message([[0, 10]]), message([]), message([[10, 990]])]))
  t.notThrows(() =>
    check([
      message([
        [0, 10],
        [10, 10]
      ]),
      message([[20, 1]])
    ])
  ) // touching is no overlap
  t.notThrows(() =>
    check([
      message(
        [
          [0, 10],
          [20, 10]
        ],
        { type: 1 }
      ),
      message([[30, 10]], { type: 1 })
    ])
  )
  t.notThrows(() => check([message([[90, 20]])], { startingOffset: 100 })) // may begin before
  t.notThrows(() => check([message([[500, 20]])], { startingOffset: 100 })) // may begin after
  t.notThrows(() =>
    check(
      [
        message([
          [0, 1],
          [2, 1]
        ]),
        message([
          [4, 1],
          [6, 1]
        ])
      ],
      { maxResults: 2 }
    )
  )
  t.notThrows(() => check([message([], { capacityBytes: 0 })]))
})

const broken: [string, BlockMetadataMessage[], RegExp, { startingOffset?: number; maxResults?: number }?][] = [
  ['type UNKNOWN', [message([], { type: 0 })], /type is 0/],
  ['a type of the future', [message([], { type: 3 })], /type is 3/],
  ['type changes', [message([]), message([], { type: 1 })], /type changes/],
  ['type is left out later', [message([]), message([], { type: 0 })], /type changes/],
  ['capacity changes', [message([]), message([], { capacityBytes: 999 })], /capacity_bytes changes/],
  ['an empty extent', [message([[0, 0]])], /is empty/],
  [
    'an empty extent later',
    [
      message([
        [0, 10],
        [20, 0]
      ])
    ],
    /is empty/
  ],
  [
    'descending',
    [
      message([
        [20, 10],
        [0, 10]
      ])
    ],
    /begins before/
  ],
  [
    'twice the same',
    [
      message([
        [0, 10],
        [0, 10]
      ])
    ],
    /begins before/
  ],
  [
    'overlap',
    [
      message([
        [0, 10],
        [9, 10]
      ])
    ],
    /begins before/
  ],
  ['overlap across messages', [message([[0, 10]]), message([]), message([[9, 10]])], /begins before 10/],
  [
    'FIXED_LENGTH that differs',
    [
      message(
        [
          [0, 10],
          [10, 11]
        ],
        { type: 1 }
      )
    ],
    /FIXED_LENGTH/
  ],
  [
    'FIXED_LENGTH that differs later',
    [message([[0, 10]], { type: 1 }), message([[10, 9]], { type: 1 })],
    /FIXED_LENGTH/
  ],
  [
    'before the starting offset',
    [
      message([
        [0, 10],
        [10, 20]
      ])
    ],
    /starting offset/,
    { startingOffset: 10 }
  ],
  [
    'more than asked for',
    [
      message([
        [0, 1],
        [2, 1],
        [4, 1]
      ])
    ],
    /max_results/,
    { maxResults: 2 }
  ],
  ['beyond the capacity', [message([[1000, 1]])], /beyond the capacity/],
  [
    'after one that reaches beyond the capacity',
    [
      message([
        [990, 20],
        [1010, 1]
      ])
    ],
    /beyond the capacity/
  ]
]

for (const [name, messages, reason, asked] of broken) {
  test(`broken: ${name}`, (t) => {
    const error = t.throws(() => check(messages, asked), { instanceOf: DeltamapperError, message: reason })
    t.is(error.code, 'DM_ANSWER_INVALID')
  })
}

test('an extent that reaches beyond the capacity is cut there', (t) => {
  const last = message(
    [
      [0, 400],
      [800, 400]
    ],
    { type: 1 }
  )
  check([last])
  t.deepEqual([...last.sizes.subarray(0, 2)], [400, 200])
})
