/**
 * `lv_attr`: ten characters, one fact each (lvs(8), NOTES). LVM adds letters over time. A letter that is not listed
 * here is `unknown`, and so is what a report made without asking the kernel cannot say (`X`).
 *
 *   V w i - a o t z - k
 *   │ │ │ │ │ │ │ │ │ └ skip activation
 *   │ │ │ │ │ │ │ │ └ health
 *   │ │ │ │ │ │ │ └ new blocks are zeroed
 *   │ │ │ │ │ │ └ target type
 *   │ │ │ │ │ └ device open
 *   │ │ │ │ └ state
 *   │ │ │ └ fixed minor
 *   │ │ └ allocation policy, a capital while locked against changes
 *   │ └ permissions
 *   └ volume type
 */

const volumeTypes = {
  C: 'cache',
  m: 'mirror',
  M: 'mirror without initial sync',
  o: 'origin',
  O: 'origin with merging snapshot',
  g: 'integrity',
  r: 'raid',
  R: 'raid without initial sync',
  s: 'snapshot',
  S: 'merging snapshot',
  p: 'pvmove',
  v: 'virtual',
  i: 'image',
  I: 'image out of sync',
  l: 'mirror log',
  c: 'under conversion',
  V: 'thin volume',
  t: 'thin pool',
  T: 'thin pool data',
  d: 'vdo pool',
  D: 'vdo pool data',
  e: 'metadata',
  '-': 'ordinary'
} as const

const permissions = { w: 'writeable', r: 'read-only', R: 'read-only activation', '-': 'none' } as const

const allocations = {
  a: 'anywhere',
  c: 'contiguous',
  i: 'inherited',
  l: 'cling',
  n: 'normal',
  '-': 'none'
} as const

const states = {
  a: 'active',
  h: 'historical',
  s: 'suspended',
  I: 'invalid snapshot',
  S: 'invalid suspended snapshot',
  m: 'snapshot merge failed',
  M: 'suspended snapshot merge failed',
  d: 'device without table',
  i: 'device with inactive table',
  c: 'check needed',
  C: 'suspended, check needed',
  '-': 'inactive'
} as const

const targetTypes = {
  C: 'cache',
  m: 'mirror',
  r: 'raid',
  s: 'snapshot',
  t: 'thin',
  v: 'virtual',
  '-': 'none'
} as const

const healths = {
  p: 'partial',
  r: 'refresh needed',
  m: 'mismatches',
  w: 'writemostly',
  R: 'reshape data offset removed',
  s: 'reshaping',
  F: 'failed',
  D: 'out of data space',
  M: 'metadata read only',
  E: 'writecache error',
  '-': 'good'
} as const

type Named<T> = T[keyof T] | 'unknown'

export interface Attributes {
  volumeType: Named<typeof volumeTypes>
  permissions: Named<typeof permissions>
  allocation: Named<typeof allocations>
  allocationLocked: boolean
  fixedMinor: boolean
  state: Named<typeof states>
  /** Undefined when the report does not say. */
  open: boolean | undefined
  targetType: Named<typeof targetTypes>
  zeroNewBlocks: boolean
  health: Named<typeof healths>
  skipActivation: boolean
}

/** Decodes `lv_attr`; undefined for any other string. Older versions of LVM leave out the last characters. */
export function parseAttributes(text: string): Attributes | undefined {
  if (!/^[A-Za-z-]{6,16}$/.test(text)) return undefined
  const [volumeType, permission, allocation, minor, state, open, target, zero, health, skip] = text.padEnd(10, '-')
  return {
    volumeType: named(volumeTypes, volumeType),
    permissions: named(permissions, permission),
    allocation: named(allocations, allocation?.toLowerCase()),
    allocationLocked: /[A-Z]/.test(allocation ?? ''),
    fixedMinor: minor === 'm',
    state: named(states, state),
    open: open === 'o' ? true : open === '-' ? false : undefined,
    targetType: named(targetTypes, target),
    zeroNewBlocks: zero === 'z',
    health: named(healths, health),
    skipActivation: skip === 'k'
  }
}

function named<T extends Record<string, string>>(names: T, character: string | undefined): Named<T> {
  return character !== undefined && Object.hasOwn(names, character) ? (names[character] as T[keyof T]) : 'unknown'
}
