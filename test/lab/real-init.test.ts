/**
 * The units on a machine with a real systemd, udev and LVM: what agent and router can do in their sandboxes, what is mounted through the agent's
 * death and its restarts, and what the next boot finds.
 */
import { basename, dirname, join } from 'node:path'
import test from 'ava'
import { Authority } from '../support/certificates.ts'
import { testFolder } from '../support/test-folder.ts'
import { ensureNbdTools } from './nbd-tools.ts'
import { LabUnavailable } from './packages.ts'
import { ensureRelease } from './releases.ts'
import { ensureSystemdRoot, kernelRelease, SystemdMachine } from './systemd.ts'

let nbdTools = ''
const tools = ensureNbdTools('trixie').then((bin) => (nbdTools = bin))
const unavailable = await Promise.all([ensureRelease(kernelRelease()), ensureSystemdRoot(), tools]).then(
  () => undefined,
  (error: unknown) => {
    if (error instanceof LabUnavailable) return error.message
    throw error
  }
)
const folder = testFolder(test)
const machineTest = unavailable === undefined ? test.serial : test.skip

/** Each step is named before it runs, and the first one that fails ends the script. */
const begin = `set -euo pipefail; trap 'echo "ended with $?"' EXIT; step() { echo "== $*"; }`

const tls = '/etc/deltamapper/tls'
/** `npm run soak` also looks at a backup of which nothing is kept. */
const isLong = process.env['LAB_COUNT'] !== undefined
const firstBoot = (certificates: string) => `${begin}
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
step 'the router, from within its sandbox'
install -D -m 0644 /opt/deltamapper/deploy/systemd/deltamapper.sysusers /usr/lib/sysusers.d/deltamapper.conf; systemd-sysusers 2>/dev/null
install -d -m 0750 -g deltamapper /etc/deltamapper/tls; install -m 0640 -g deltamapper -t /etc/deltamapper/tls ${certificates}/*
cat >/etc/deltamapper/agent.yaml <<END
listen: [unix:///run/deltamapper/agent.sock, tcp://127.0.0.1:50051]
tls: { certificate: ${tls}/issued-1.crt, key: ${tls}/issued-1.key, ca: ${tls}/ca.crt, clientName: router.test }
END
cat >/etc/deltamapper/router.yaml <<END
driverName: lvm.example.org
listen: [unix:///run/deltamapper-router/csi.sock]
tls: { certificate: ${tls}/issued-2.crt, key: ${tls}/issued-2.key, ca: ${tls}/ca.crt, agentName: agent.test }
static: { nodes: { node-1: tcp://127.0.0.1:50051 }, handles: [{ pattern: "(?<node>[^:]+):(?<vg>[^/]+)/(?<lv>.+)" }] }
END
systemctl restart deltamapper-agent; systemctl start deltamapper-router
stat -c %U /run/deltamapper-router/csi.sock
deltamapper delta node-1:srv/monday node-1:srv/tuesday --endpoint unix:///run/deltamapper-router/csi.sock -o ndjson | tail -n 1
systemctl restart deltamapper-router; systemctl stop deltamapper-router
systemctl show -P Result deltamapper-router
${firstBackups}
step 'power off'
trap - EXIT
`

/** What a unit starts has no PATH of the test's. */
const qemuImg = `#!/bin/sh\nexec /opt/deltamapper/.cache/lab/${basename(dirname(nbdTools))}/bin-for-tests/qemu-img "$@"\n`

/** docs/backup.md: a nightly backup, of which the first is made now. The timer thinks that the last night was missed. */
const firstBackups = `
step 'a backup, from within the sandbox'
printf '${qemuImg.replaceAll('\n', '\\n')}' >/usr/local/bin/qemu-img; chmod +x /usr/local/bin/qemu-img
lvcreate -q -L 100m --thinpool pool vg0 >/dev/null 2>&1; mkdir /srv/backup
for each in mail ${isLong ? 'news' : ''}; do
  lvcreate -q -V 16m --thin -n $each vg0/pool >/dev/null 2>&1
  dd if=/dev/urandom of=/dev/vg0/$each bs=64k count=20 oflag=direct status=none
done
sed 's/--keep 14/& --keep-snapshot -o json/' /opt/deltamapper/deploy/systemd/backup.conf >/etc/deltamapper/backup.conf
systemctl start deltamapper-backup || journalctl -u deltamapper-backup -o cat
journalctl --sync; journalctl -u deltamapper-backup -o cat | grep '^{'
${isLong ? 'deltamapper backup vg0/news --to /srv/backup -o json' : ''}
mkdir -p /etc/systemd/system/deltamapper-backup.timer.d
printf '[Timer]\\nRandomizedDelaySec=0\\n' >/etc/systemd/system/deltamapper-backup.timer.d/at-once.conf
systemctl daemon-reload; systemctl enable deltamapper-backup.timer
touch -d '2 days ago' /var/lib/systemd/timers/stamp-deltamapper-backup.timer
dd if=/dev/urandom of=/dev/vg0/mail bs=64k count=3 seek=9 oflag=direct conv=notrunc status=none
`

const secondBoot = `${begin}
step 'the timer makes up for the night'
until [ "$(systemctl show -P ExecMainExitTimestampMonotonic deltamapper-backup)" != 0 ]; do sleep 0.5; done
journalctl --sync; journalctl -b -u deltamapper-backup -o cat
systemctl is-active deltamapper-backup.timer
${isLong ? "step 'nothing was kept'\ndeltamapper backup vg0/news --to /srv/backup -o json" : ''}
step restored
deltamapper backup restore /srv/backup --volume vg0/mail \
  --point "$(ls /srv/backup/vg0/mail | sed -n 's/.qcow2$//p' | tail -n 1)" --to /root/mail
cmp /root/mail /dev/vg0/mail && echo same
step 'after the boot'
until findmnt -n -o SOURCE /srv/data; do sleep 0.5; done
cat /srv/data/one /srv/data/three
step 'what was written across the boot'
deltamapper snapshot create srv thursday --deadline 600
deltamapper delta srv/tuesday srv/thursday -o ndjson | tail -n 1
trap - EXIT
`

machineTest('a tracked volume is snapshotted, stays mounted, and is there again after a boot', async (t) => {
  t.timeout(59 * 60_000)
  await using machine = await SystemdMachine.create()
  const first = await machine.boot(firstBoot(await certificates()), { timeoutSeconds: 29 * 60 })
  const said = sections(first.said)
  t.notRegex(first.said ?? first.console, /^ended with/m, first.said)
  t.is(said.get('the agent dies'), '/dev/mapper/srv\n/dev/mapper/srv\n')
  t.regex(said.get('the agent is restarted') ?? '', /^\/dev\/mapper\/srv\n/)
  t.regex(said.get('what was written') ?? '', /^{"complete":true/m)
  t.regex(said.get('the router, from within its sandbox') ?? '', /^deltamapper\n{"complete":true.*\nsuccess\n$/)
  const unmounted = said.get('not mounted') ?? ''
  const says = /nobody has \/dev\/mapper\/srv open: it was mounted\s+at \/srv\/data when\s+snapshot tuesday/g
  t.is(unmounted.match(says)?.length, 2, `doctor and snapshot create say so: ${unmounted}`)

  const second = await machine.boot(secondBoot, { timeoutSeconds: 29 * 60 })
  const later = sections(second.said)
  t.notRegex(second.said ?? second.console, /^ended with/m, second.said)
  const made = (boot: Map<string, string>, step: string) => {
    const [, line = '{"points":[]}'] = /^({"points".*)$/m.exec(boot.get(step) ?? '') ?? []
    return (JSON.parse(line) as { points: { volume: string; kind: string; read_bytes: number }[] }).points[0]
  }
  t.like(made(said, 'a backup, from within the sandbox'), { volume: 'vg0/mail', kind: 'full', read_bytes: 20 * 65536 })
  const madeUp = made(later, 'the timer makes up for the night')
  t.like(madeUp, { volume: 'vg0/mail', kind: 'increment', read_bytes: 3 * 65536 }, 'the snapshot was kept')
  t.regex(later.get('the timer makes up for the night') ?? '', /^active$/m)
  if (isLong) {
    t.is(made(later, 'nothing was kept').kind, 'full')
    t.regex(later.get('nothing was kept') ?? '', /a full backup, because .*DM_BASE_RECORD_INTERRUPTED/)
  }
  t.regex(later.get('restored') ?? '', /^same$/m)
  t.is(later.get('after the boot'), '/dev/mapper/srv\none\nthree\n')
  // (The script powers the machine off before its boot has finished, because it is a part of that itself.)
  t.regex(later.get('what was written across the boot') ?? '', /^{"complete":true/m)
  t.log(`${first.seconds} s and ${second.seconds} s`)
})

/** A folder with certificates of an agent (1) and a router (2), which the machine sees as well. */
async function certificates(): Promise<string> {
  const authority = await Authority.create(join(folder, 'certificates'))
  await authority.issue('agent.test')
  await authority.issue('router.test')
  return authority.folder
}

/** What was printed after each step's name. */
function sections(said = ''): Map<string, string> {
  const parts = said.split(/^== /m).slice(1)
  return new Map(parts.map((part) => [part.slice(0, part.indexOf('\n')), part.slice(part.indexOf('\n') + 1)]))
}
