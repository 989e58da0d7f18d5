import { readdirSync, statSync } from 'node:fs'
import test from 'ava'
import { groupSection } from '../../../src/agent/lvm/metadata-text.ts'
import { segmentsOf } from '../../../src/agent/lvm/segments.ts'
import { unlikeLvm } from '../../../src/agent/lvm/lvm-tables.ts'
import { decodeDeviceNumber } from '../../../native/device.ts'

const ids = { group: 'GGGGGG-GGGG', mirror: 'MMMMMM-MMMM', pool: 'PPPPPP-PPPP', below: 'BBBBBB-BBBB' }

/** As `pvck --dump metadata` prints it (2.03.16), shortened. */
const metadata = `
vg {
id = "${ids.group}"
extent_size = 8
physical_volumes {
pv0 {
id = "disk-0"
pe_start = 2048
}
pv1 {
id = "disk-1"
pe_start = 4096
}
}
logical_volumes {
pvmove0 {
id = "${ids.mirror}"
}
pool {
id = "${ids.pool}"
}
plain {
segment1 {
start_extent = 0
extent_count = 4
type = "striped"
stripe_count = 1
stripes = [
"pv0", 12
]
}
segment2 {
start_extent = 4
extent_count = 2
type = "striped"
stripe_count = 1
stripes = [
"pvmove0", 3
]
}
}
striped {
segment1 {
start_extent = 0
extent_count = 4
type = "striped"
stripe_count = 2
stripe_size = 128
stripes = [
"pv0", 0,
"pv1", 1
]
}
}
thin {
segment1 {
start_extent = 0
extent_count = 4
type = "thin"
thin_pool = "pool"
device_id = 7
}
}
deduplicated {
segment1 {
start_extent = 0
extent_count = 4
type = "vdo"
vdo_pool = "vdopool"
vdo_offset = 2
}
}
vdopool {
id = "VVVVVV-VVVV"
segment1 {
type = "vdo-pool"
header_size = 1024
}
}
leg {
segment1 {
start_extent = 0
extent_count = 4
type = "mirror"
mirror_count = 1
mirrors = [
"below", 1
]
}
}
overlaid {
segment1 {
start_extent = 0
extent_count = 4
type = "thin"
thin_pool = "pool"
device_id = 8
external_origin = "below"
}
}
below {
id = "${ids.below}"
}
raid {
segment1 {
start_extent = 0
extent_count = 4
type = "raid1"
raids = [
"raid_rmeta_0", "raid_rimage_0"
]
}
}
${['mirror', 'cache', 'cache+CACHE_USES_CACHEVOL', 'writecache', 'zero', 'future']
  .map((type, i) => {
    const name = ['mirror', 'cache', 'cachevol', 'writecache', 'nothing', 'unknown'][i]
    return `${name} {\nsegment1 {\nstart_extent = 0\nextent_count = 4\ntype = "${type}"\n}\n}`
  })
  .join('\n')}
}
}
`

/** Block devices of this machine, with their numbers as tables have them. */
const nodes = readdirSync('/dev').flatMap((name): [path: string, number: string][] => {
  const facts = statSync(`/dev/${name}`, { throwIfNoEntry: false })
  if (!facts?.isBlockDevice()) return []
  const { major, minor } = decodeDeviceNumber(facts.rdev)
  return [[`/dev/${name}`, `${major}:${minor}`]]
})
const [[path0, disk0] = ['', ''], [path1, disk1] = ['', '']] = nodes
const withDisks = nodes.length < 2 ? test.skip : test

const uuids: Readonly<Record<number, string>> = {
  1: 'LVM-GGGGGGGGGGMMMMMMMMMM',
  2: 'LVM-GGGGGGGGGGPPPPPPPPPP-tpool',
  3: 'LVM-GGGGGGGGGGRRRRRRRRRR',
  4: 'CRYPT-other',
  5: 'LVM-GGGGGGGGGGBBBBBBBBBB-real',
  6: 'LVM-GGGGGGGGGGSSSSSSSSSS-missing_1_0',
  7: 'LVM-GGGGGGGGGGVVVVVVVVVV-vpool',
  8: 'LVM-GGGGGGGGGGRRRRRRRRRR-cmeta',
  9: 'LVM-GGGGGGGGGGRRRRRRRRRR-cdata'
}
const deviceMapper = {
  info: async (device: unknown) => ({ uuid: uuids[(device as { minor: number }).minor] }) as never
}

/** Whether a table is like what LVM has of a volume. @param table as dmsetup prints it, a target a line */
async function isLike(
  volume: string,
  table: string,
  disks: readonly [string, string][] = known,
  lastSeen: readonly [string, string][] = []
): Promise<boolean> {
  const rows = table.split('\n').map((line) => {
    const [start, length, targetType, ...params] = line.split(' ')
    return { startSector: Number(start), lengthSectors: Number(length), targetType, params: params.join(' ') }
  })
  const segments = segmentsOf(groupSection(metadata, 'vg'), volume)
  return (
    (await unlikeLvm(deviceMapper, rows, segments, {
      ...{ vgUuid: ids.group, disks: new Map(disks), lastSeen: new Map(lastSeen) }
    })) === undefined
  )
}

const known: readonly [string, string][] = [
  ['disk-0', path0],
  ['disk-1', path1]
]

withDisks('a table as LVM makes it: linear, striped, in another volume', async (t) => {
  t.true(await isLike('plain', `0 32 linear ${disk0} 2144\n32 16 linear 253:1 24`))
  t.true(await isLike('striped', `0 32 striped 2 128 ${disk0} 2048 ${disk1} 4104`))
})

test('a table as LVM makes it: thin, raid, mirror, cache, and what stands on nothing', async (t) => {
  t.true(await isLike('thin', '0 32 thin 253:2 7'))
  t.true(await isLike('overlaid', '0 32 thin 253:2 8 253:5'))
  t.true(await isLike('raid', '0 32 raid raid1 3 0 region_size 4096 2 253:3 253:3 - -'))
  t.true(await isLike('mirror', '0 32 mirror core 2 1024 nosync 2 253:3 0 253:3 0'))
  t.true(await isLike('cache', '0 32 cache 253:3 253:3 253:3 128 1 writethrough smq 0'))
  t.true(await isLike('cachevol', '0 32 cache 253:8 253:9 253:3 128 2 metadata2 writeback smq 0'))
  t.true(await isLike('writecache', '0 32 writecache s 253:3 253:3 4096 0'))
  t.true(await isLike('nothing', '0 32 zero '))
  t.true(await isLike('deduplicated', '0 32 linear 253:7 1040'))
  t.true(await isLike('deduplicated', '0 32 striped 1 8 253:7 1040'))
  t.true(await isLike('leg', '0 32 linear 253:5 8'))
})

const first = known.slice(0, 1)
withDisks('a disk that is missing has what LVM puts in its place, or stays where it was', async (t) => {
  const striped = (device: string) => `0 32 striped 2 128 ${disk0} 2048 ${device}`
  t.true(await isLike('striped', striped('253:6 0'), first))
  t.false(await isLike('striped', striped('253:6 0')))
  t.true(await isLike('striped', striped(`${disk1} 4104`), first, known))
  t.false(await isLike('striped', striped(`${disk1} 4112`), first, known))
  // Nobody knows.
  for (const device of [disk1, '253:3', '253:4', '9:9'])
    t.false(await isLike('striped', striped(`${device} 4104`), first))
  // Where it was, another disk of the group is by now.
  const moved: [string, string][] = [['disk-1', path0]]
  t.false(await isLike('striped', striped(`${disk0} 4104`), first, moved))
})

withDisks('a disk that cannot be seen from here is none that a table can be held against', async (t) => {
  t.false(await isLike('striped', `0 32 striped 2 128 ${disk0} 2048 9:9 4104`, [...first, ['disk-1', '/dev/nothing']]))
})

for (const [what, volume, table] of [
  ['another place on the disk', 'plain', `0 32 linear ${disk0} 2152\n32 16 linear 253:1 24`],
  ['another volume', 'plain', `0 32 linear ${disk0} 2144\n32 16 linear 253:4 24`],
  ['another place in it', 'plain', `0 32 linear ${disk0} 2144\n32 16 linear 253:1 0`],
  ['the other way round', 'plain', `0 16 linear 253:1 24\n16 32 linear ${disk0} 2144`],
  ['a target too few', 'plain', `0 32 linear ${disk0} 2144`],
  ['another disk', 'plain', '0 32 linear 7:250 2144\n32 16 linear 253:1 24'],
  ['a target too many', 'thin', '0 16 thin 253:2 7\n16 16 zero '],
  ['other stripes', 'striped', `0 32 striped 2 64 ${disk0} 2048 ${disk1} 4104`],
  ['stripes in another order', 'striped', `0 32 striped 2 128 ${disk1} 4104 ${disk0} 2048`],
  ['no stripes', 'striped', `0 32 linear ${disk0} 2048`],
  ['another thin volume', 'thin', '0 32 thin 253:2 8'],
  ['another pool', 'thin', '0 32 thin 253:3 7'],
  ['something that shows through', 'thin', `0 32 thin 253:2 7 ${disk0}`],
  ['something of the group that shows through', 'thin', '0 32 thin 253:2 7 253:5'],
  ['nothing that shows through', 'overlaid', '0 32 thin 253:2 8'],
  ['something else that shows through', 'overlaid', '0 32 thin 253:2 8 253:3'],
  ['a word more', 'overlaid', '0 32 thin 253:2 8 253:5 253:5'],
  ['something that discards', 'thin', '0 32 zero '],
  ['nothing', 'thin', '0 0 error '],
  ['raid that reads as zeros', 'raid', '0 32 zero '],
  ['raid that fails', 'raid', '0 32 error '],
  ['one leg of a raid', 'raid', '0 32 linear 253:3 0'],
  ['raid of nothing', 'raid', '0 32 raid raid1 3 0 region_size 4096 2 - - - -'],
  ['raid with a leg outside of the group', 'raid', '0 32 raid raid1 1 0 2 253:3 253:4'],
  ['a mirror as raid', 'mirror', '0 32 raid raid1 1 0 2 253:3 253:3'],
  ['a cache that is taken away', 'cache', '0 32 linear 253:3 0'],
  ['a volume of zeros that is one', 'nothing', '0 32 linear 253:3 0'],
  ['another place in a VDO pool', 'deduplicated', '0 32 linear 253:7 1024'],
  ['a VDO volume on its own', 'deduplicated', '0 32 vdo V4 253:7'],
  ['two stripes for one', 'deduplicated', '0 32 striped 2 8 253:7 1040 253:7 1040'],
  ['stripes of nothing', 'deduplicated', '0 32 striped '],
  ['a mirror of one leg on another volume', 'leg', '0 32 linear 253:3 8'],
  ['a type that LVM does not have yet', 'unknown', '0 32 linear 253:3 0']
] as const) {
  test(`a table that is unlike: ${what}`, async (t) => {
    t.false(await isLike(volume, table))
  })
}
