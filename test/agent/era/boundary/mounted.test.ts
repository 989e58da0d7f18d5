/**
 * A volume that has lost its mount is told from one that nobody writes to.
 */
import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import { mountPoints, unmountedSince } from '../../../../src/agent/era/boundary/mounted.ts'
import { testFolder } from '../../../support/test-folder.ts'

const folder = testFolder(test)
const mountinfo = `22 1 98:0 / / rw,relatime - ext4 /dev/root rw
41 22 254:9 / /srv/data rw,relatime shared:1 - ext4 /dev/mapper/srv rw
42 22 254:9 /logs /var/log/my\\040app rw - ext4 /dev/mapper/srv rw
43 22 254:9 / /srv/data rw,relatime shared:1 - ext4 /dev/mapper/srv rw
44 22 254:99 / /other rw - ext4 /dev/mapper/other rw
`

test('where a device is mounted, as the first process sees it, else as this one does', async (t) => {
  const proc = join(folder, 'proc')
  await mkdir(join(proc, 'self'), { recursive: true })
  await writeFile(join(proc, 'self/mountinfo'), mountinfo)
  const srv = { major: 254, minor: 9 }
  t.deepEqual(await mountPoints(srv, proc), ['/srv/data', '/var/log/my app'])
  t.deepEqual(await mountPoints({ major: 254, minor: 7 }, proc), [])
  await mkdir(join(proc, '1'))
  await writeFile(join(proc, '1/mountinfo'), mountinfo.replaceAll('/srv/data', '/host'))
  t.deepEqual(await mountPoints(srv, proc), ['/host', '/var/log/my app'])
})

const taken = (name: string, takenAt: number, mountedAt?: string[]) => ({
  ...{ name, takenAt },
  lower: JSON.stringify({ kind: 'lvm', volume: `vg0/${name}`, token: 't', ...(mountedAt && { mountedAt }) })
})

test('a volume that nobody has open any more was mounted where the last snapshot says', (t) => {
  const closed = { name: 'srv', openCount: 0 }
  const snapshots = [taken('tuesday', 2, ['/srv/data']), taken('monday', 1, ['/old'])]
  t.regex(
    unmountedSince(closed, snapshots) ?? '',
    /^nobody has \/dev\/mapper\/srv open: it was mounted at \/srv\/data when snapshot tuesday was taken, and is not now/
  )
  // Until it is mounted again, however many snapshots are taken meanwhile.
  t.regex(unmountedSince(closed, [...snapshots, taken('wednesday', 3)]) ?? '', /tuesday/)
  t.is(unmountedSince({ ...closed, openCount: 1 }, snapshots), undefined)
  for (const none of [[], [taken('monday', 1)], [{ name: 'old', takenAt: 1, lower: '' }]]) {
    t.is(unmountedSince(closed, none), undefined)
  }
})
