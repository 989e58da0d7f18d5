/**
 * What can be changed of a B-tree's node whatever its tree holds: keys, counts, sizes, levels.
 */
import type { NodeFields } from './metadata-damage.ts'
import type { Random } from './random.ts'

/** Changes a key, a count, a size, the level, or takes an entry out. @returns what was done */
export function mutateKeysOrCounts(fields: NodeFields, random: Random): string {
  const { entries, maxEntries } = fields
  switch (random.integer(0, entries === 0 ? 3 : 9)) {
    case 0:
      fields.entries = random.pick([
        0,
        1,
        Math.max(0, entries - 1),
        entries + 1,
        random.integer(0, maxEntries),
        maxEntries
      ])
      return `${fields.entries} entries for ${entries}`
    case 1:
      fields.maxEntries = Math.max(0, maxEntries + random.pick([-3, -1, 1, 3, random.integer(-200, 200)]))
      return `${fields.maxEntries} entries at most for ${maxEntries}`
    case 2:
      fields.flags = random.integer(0, 3)
      return 'other flags'
    case 3:
      fields.valueSize = random.pick([4, 8, 12, 16, 24])
      return `values of ${fields.valueSize} bytes`
    case 4: {
      const [one, other] = [random.integer(0, entries - 1), random.integer(0, entries - 1)]
      const [key, otherKey] = [fields.key(one), fields.key(other)]
      fields.setKey(one, otherKey)
      fields.setKey(other, key)
      return `keys ${one} and ${other} swapped`
    }
    case 5: {
      // An entry is taken out as if it had never been there.
      const at = random.integer(0, entries - 1)
      for (let i = at; i < entries - 1; i++) {
        fields.setKey(i, fields.key(i + 1))
        fields.copyValue(i, i + 1)
      }
      fields.entries = entries - 1
      return `entry ${at} is taken out`
    }
    default: {
      const at = random.integer(0, entries - 1)
      const key = fields.key(at)
      const step = BigInt(random.integer(1, 50))
      const changed = random.pick([
        ...[key + 1n, key - 1n, key + step, key - step, key ^ (1n << BigInt(random.integer(0, 63))), 0n],
        ...(at + 1 < entries ? [fields.key(at + 1), fields.key(at + 1) - 1n] : [key + 2n ** 20n]),
        ...(at > 0 ? [fields.key(at - 1), fields.key(at - 1) + 1n] : [])
      ])
      fields.setKey(at, BigInt.asUintN(64, changed))
      return `key ${at} is ${fields.key(at)} for ${key}`
    }
  }
}
