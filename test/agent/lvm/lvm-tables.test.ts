import { statSync } from 'node:fs'
import test from 'ava'
import { groupSection } from '../../../src/agent/lvm/metadata-text.ts'
import { segmentsOf } from '../../../src/agent/lvm/segments.ts'
import { unlikeLvm } from '../../../src/agent/lvm/lvm-tables.ts'
import { decodeDeviceNumber } from '../../../native/device.ts'

const ids = { group: 'GGGGGG-GGGG', mirror: 'MMMMMM-MMMM', pool: 'PPPPPP-PPPP' }

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
}
}
`

/** A block device that every machine has; none where there is none. */
const node = ['/dev/vda', '/dev/sda', '/dev/loop0', '/dev/nvme0n1', '/dev/ubda'].find((path) => {
  try {
    return statSync(path).isBlockDevice()
  } catch {
    return false
  }
})
const number = node === undefined ? undefined : decodeDeviceNumber(statSync(node).rdev)
const disk = number ? `${number.major}:${number.minor}` : '8:0'

const uuids: Readonly<Record<number, string>> = {
  1: 'LVM-GGGGGGGGGGMMMMMMMMMM',
  2: 'LVM-GGGGGGGGGGPPPPPPPPPP-tpool',
  3: 'LVM-GGGGGGGGGGRRRRRRRRRR',
  4: 'CRYPT-other'
}
const deviceMapper = {
  info: async (device: unknown) => ({ uuid: uuids[(device as { minor: number }).minor] }) as never
}

/** Whether a table is like what LVM has of a volume. @param table as dmsetup prints it, a target a line */
async function isLike(volume: string, table: string, disks: readonly [string, string][] = known): Promise<boolean> {
  const rows = table.split('\n').map((line) => {
    const [start, length, targetType, ...params] = line.split(' ')
    return { startSector: Number(start), lengthSectors: Number(length), targetType, params: params.join(' ') }
  })
  const segments = segmentsOf(groupSection(metadata, 'vg'), volume)
  return (await unlikeLvm(deviceMapper, rows, segments, { vgUuid: ids.group, disks: new Map(disks) })) === undefined
}

// (The second one cannot be seen from here.)
const known: readonly [string, string][] = [
  ['disk-0', node ?? '/dev/nothing'],
  ['disk-1', '/dev/nothing']
]

test('a table as LVM makes it: linear, striped, in another volume, thin, raid', async (t) => {
  t.true(await isLike('plain', `0 32 linear ${disk} 2144\n32 16 linear 253:1 24`))
  t.true(await isLike('striped', `0 32 striped 2 128 ${disk} 2048 9:9 4104`))
  t.true(await isLike('thin', '0 32 thin 253:2 7'))
  t.true(await isLike('thin', '0 32 thin 253:2 7 8:1'))
  t.true(await isLike('raid', '0 32 raid raid1 3 0 region_size 4096 2 253:3 253:3 - -'))
})

test('a disk that is missing has something else in its place', async (t) => {
  t.true(await isLike('striped', `0 32 striped 2 128 ${disk} 2048 253:9 0`, known.slice(0, 1)))
})

for (const [what, volume, table] of [
  ['another place on the disk', 'plain', `0 32 linear ${disk} 2152\n32 16 linear 253:1 24`],
  ['another volume', 'plain', `0 32 linear ${disk} 2144\n32 16 linear 253:4 24`],
  ['another place in it', 'plain', `0 32 linear ${disk} 2144\n32 16 linear 253:1 0`],
  ['the other way round', 'plain', `0 16 linear 253:1 24\n16 32 linear ${disk} 2144`],
  ['a target too few', 'plain', `0 32 linear ${disk} 2144`],
  ['a target too many', 'thin', '0 16 thin 253:2 7\n16 16 zero '],
  ['other stripes', 'striped', `0 32 striped 2 64 ${disk} 2048 9:9 4104`],
  ['stripes in another order', 'striped', `0 32 striped 2 128 9:9 4104 ${disk} 2048`],
  ['no stripes', 'striped', `0 32 linear ${disk} 2048`],
  ['another thin volume', 'thin', '0 32 thin 253:2 8'],
  ['another pool', 'thin', '0 32 thin 253:3 7'],
  ['something that discards', 'thin', '0 32 zero '],
  ['nothing', 'thin', '0 0 error ']
] as const) {
  test(`a table that is unlike: ${what}`, async (t) => {
    t.false(await isLike(volume, table))
  })
}

const withDisk = number === undefined ? test.skip : test
withDisk('a table that is unlike: another disk, or what is not of the group', async (t) => {
  t.false(await isLike('plain', '0 32 linear 7:250 2144\n32 16 linear 253:1 24'))
  const all: [string, string][] = [['disk-0', node ?? '']]
  t.true(await isLike('raid', `0 32 raid raid1 1 0 2 253:3 ${disk}`, all))
  t.false(await isLike('raid', '0 32 raid raid1 1 0 2 253:3 253:4', all))
})
