/**
 * The units on a machine with a real systemd, udev and LVM: what an agent in its sandbox can do, what is mounted through its death and its
 * restarts, and what the next boot finds.
 */
import test from 'ava'
import { LabUnavailable } from './packages.ts'
import { ensureRelease } from './releases.ts'
import { ensureSystemdRoot, SystemdMachine } from './systemd.ts'

const unavailable = await Promise.all([ensureRelease('trixie'), ensureSystemdRoot()]).then(
  () => undefined,
  (error: unknown) => {
    if (error instanceof LabUnavailable) return error.message
    throw error
  }
)
const machineTest = unavailable === undefined ? test.serial : test.skip

/** Each step is named before it runs, and the first one that fails ends the script. */
const begin = `set -euo pipefail; trap 'echo "ended with $?"' EXIT; step() { echo "== $*"; }`

const firstBoot = `${begin}
step volumes
pvcreate -q /dev/ubdb; vgcreate -q vg0 /dev/ubdb
lvcreate -q -Wn -n srv -L 64m vg0 >/dev/null; lvcreate -q -Wn -n srv_era -L 8m vg0 >/dev/null
mkfs.ext4 -q /dev/vg0/srv; mkdir /srv/data
step units
systemctl enable --now deltamapper-agent deltamapper-era
step attach
deltamapper era attach srv --data /dev/vg0/srv --metadata /dev/vg0/srv_era --snapshot-size 16m >/dev/null
echo '/dev/mapper/srv /srv/data ext4 _netdev,x-systemd.device-timeout=5min 0 2' >>/etc/fstab
systemctl daemon-reload; systemctl start /srv/data
echo one >/srv/data/one
step 'a snapshot of a thick volume, from within the sandbox'
deltamapper snapshot create srv monday --deadline 600
step 'the agent dies'
systemctl kill --signal KILL --kill-whom main deltamapper-agent
findmnt -n -o SOURCE /srv/data
until [ "$(systemctl is-active deltamapper-agent)" = active ]; do sleep 0.2; done
findmnt -n -o SOURCE /srv/data
step 'the agent is restarted'
systemctl restart deltamapper-agent
findmnt -n -o SOURCE /srv/data
dd if=/dev/urandom of=/srv/data/two bs=64k count=3 conv=fsync status=none
deltamapper snapshot create srv tuesday --deadline 600
step 'what was written'
deltamapper delta srv/monday srv/tuesday -o ndjson | tail -n 1
step 'not mounted'
systemctl stop /srv/data
deltamapper doctor || true
deltamapper snapshot create srv wednesday --deadline 600
systemctl start /srv/data
echo three >/srv/data/three; sync
step 'power off'
trap - EXIT
`

const secondBoot = `${begin}
step 'after the boot'
until findmnt -n -o SOURCE /srv/data; do sleep 0.5; done
cat /srv/data/one /srv/data/three
trap - EXIT
`

machineTest('a tracked volume is snapshotted, stays mounted, and is there again after a boot', async (t) => {
  t.timeout(29 * 60_000)
  await using machine = await SystemdMachine.create()
  const first = await machine.boot(firstBoot, { timeoutSeconds: 14 * 60 })
  const said = sections(first.said)
  t.notRegex(first.said ?? first.console, /^ended with/m, first.said)
  t.is(said.get('the agent dies'), '/dev/mapper/srv\n/dev/mapper/srv\n')
  t.regex(said.get('the agent is restarted') ?? '', /^\/dev\/mapper\/srv\n/)
  t.regex(said.get('what was written') ?? '', /^{"complete":true/m)
  const unmounted = said.get('not mounted') ?? ''
  const says = /nobody has \/dev\/mapper\/srv open: it was mounted\s+at \/srv\/data when\s+snapshot tuesday/g
  t.is(unmounted.match(says)?.length, 2, `doctor and snapshot create say so: ${unmounted}`)

  const second = await machine.boot(secondBoot, { timeoutSeconds: 14 * 60 })
  const after = sections(second.said).get('after the boot') ?? ''
  t.notRegex(second.said ?? second.console, /^ended with/m, second.said)
  t.is(after, '/dev/mapper/srv\none\nthree\n')
  t.log(`${first.seconds} s and ${second.seconds} s`)
})

/** What was printed after each step's name. */
function sections(said = ''): Map<string, string> {
  const parts = said.split(/^== /m).slice(1)
  return new Map(parts.map((part) => [part.slice(0, part.indexOf('\n')), part.slice(part.indexOf('\n') + 1)]))
}
