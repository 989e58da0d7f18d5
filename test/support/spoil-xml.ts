/**
 * Ways to spoil a document, as transport, editors, other programs and enemies do.
 */
import type { Random } from './random.ts'

/** What an enemy would put in, and what might get in by accident. */
const insertions = [
  ...[
    '<',
    '>',
    '"',
    "'",
    '/',
    '=',
    '&',
    ' ',
    '\n',
    '\0',
    '\u00ff',
    '-',
    '+',
    '.',
    '0',
    '9',
    'e',
    ']]>',
    '\uFEFF',
    '\u0085'
  ],
  ...[
    '&lt;',
    '&#32;',
    '&#x31;',
    '&lol;',
    '<!-- x -->',
    '<!--',
    '-->',
    '<![CDATA[ ]]>',
    '<?x y?>',
    '<?xml version="1.0"?>'
  ],
  ...['<!DOCTYPE superblock [<!ENTITY a "1">]>', '<x/>', '<x>', '</x>', 'text', ' a="b"', ' begin="1"', ' length="0"'],
  ...['<same begin="1" length="1"/>', '<same>', '</same>', '<diff left="1" right="2">', '</diff>', '</superblock>'],
  ...[
    '<ref name="0"/>',
    '<device dev_id="1" mapped_blocks="0" transaction="0" creation_time="0" snap_time="0">',
    '</device>'
  ],
  ...['<block block="3"/>', '<bit block="1" value="true"/>', '<era block="1" era="1"/>', '</blocks>', '</era_array>']
]

/** The same bytes with one to three things wrong, each anywhere. */
export function spoiled(bytes: Uint8Array, random: Random): Buffer {
  let spoiled: Buffer = Buffer.from(bytes)
  for (let more = random.pick([1, 1, 1, 2, 3]); more > 0; more--) spoiled = spoil(spoiled, random)
  return spoiled
}

function spoil(bytes: Buffer, random: Random): Buffer {
  const at = random.integer(0, bytes.length)
  const to = Math.min(bytes.length, at + random.pick([1, 2, 10, 60, 500]))
  const [before, piece, after] = [bytes.subarray(0, at), bytes.subarray(at, to), bytes.subarray(to)]
  const lines = bytes.toString('latin1').split('\n')
  const [one, other] = [random.integer(0, lines.length - 1), random.integer(0, lines.length - 1)]
  switch (random.integer(0, 9)) {
    case 0: {
      const flipped = Buffer.from(bytes)
      if (at < bytes.length) flipped[at] ^= 1 << random.integer(0, 7)
      return flipped
    }
    case 1:
      return Buffer.concat([before, after])
    case 2:
      return Buffer.concat([before, piece, piece, after])
    case 3:
    case 4:
      return Buffer.concat([before, Buffer.from(random.pick(insertions)), piece, after])
    case 5:
      return before
    case 6:
      return after
    case 7: {
      // Two lines change places: out of order, though each is well-formed.
      const kept = lines[one]
      lines[one] = lines[other]
      lines[other] = kept
      return Buffer.from(lines.join('\n'), 'latin1')
    }
    case 8:
      lines.splice(one, 1, ...random.pick([[], [lines[one], lines[one]]]))
      return Buffer.from(lines.join('\n'), 'latin1')
    default: {
      // A number becomes another one.
      const text = bytes.toString('latin1')
      const numbers = [...text.matchAll(/[0-9]+/g)]
      if (numbers.length === 0) return bytes
      const found = random.pick(numbers)
      const values = [
        '0',
        '1',
        `${Number(found[0]) + 1}`,
        `0${found[0]}`,
        '-1',
        '1099511627777',
        '99999999999999999999',
        '1e3',
        ''
      ]
      return Buffer.from(
        text.slice(0, found.index) + random.pick(values) + text.slice(found.index + found[0].length),
        'latin1'
      )
    }
  }
}
