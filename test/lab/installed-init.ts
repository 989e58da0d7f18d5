/**
 * The life of a machine on which the Debian package is installed: a thin and a tracked volume set up as the docs say,
 * boots after orderly ends and after power cuts, then the agent's death, an upgrade and a purge, all of it under
 * mounted file systems.
 */
import { quickDeb, variantOf } from './debian-package.ts'
import { type Boot, SystemdMachine } from './systemd.ts'

/** The checkout as the machine sees it. */
const check = '/usr/lib/deltamapper/node /opt/deltamapper/test/lab/check-delta.ts'

const begin = `set -euo pipefail; trap 'echo "ended with $?"' EXIT; step() { echo "== $*"; }
mounted() { findmnt -n -o SOURCE /srv/home && findmnt -n -o SOURCE /srv/data; }
`

/** docs/hosts.md and docs/tracked-volumes.md, after docs/install.md. */
const firstBoot = (deb: string) => `${begin}
step install
apt-get install --yes --no-install-recommends ${deb} >/root/apt.log 2>&1 || { cat /root/apt.log; exit 1; }
systemctl is-active deltamapper-agent; systemctl is-enabled deltamapper-agent
deltamapper --version
step volumes
pvcreate -q /dev/ubdb >/dev/null; vgcreate -q vg0 /dev/ubdb >/dev/null; mkdir /srv/home /srv/data
lvcreate -q -L 200m --thinpool pool vg0 >/dev/null 2>&1; lvcreate -q -V 64m --thin -n home vg0/pool >/dev/null 2>&1
mkfs.ext4 -q /dev/vg0/home
lvcreate -q -Wn -n srv -L 64m vg0 >/dev/null; lvcreate -q -Wn -n srv_era -L 8m vg0 >/dev/null
dd if=/dev/zero of=/dev/vg0/srv_era bs=4096 count=1 conv=fsync status=none
mkfs.ext4 -q /dev/vg0/srv
step tracked
install -D -m 0644 -t /etc/systemd/system/deltamapper-agent.service.d /usr/share/deltamapper/era.conf
install -D -m 0644 -t /etc/udev/rules.d /usr/lib/udev/rules.d/90-deltamapper-era.rules
systemctl daemon-reload; systemctl restart deltamapper-agent; systemctl enable --now deltamapper-era 2>/dev/null
deltamapper era attach srv --data /dev/vg0/srv --metadata /dev/vg0/srv_era --snapshot-size 32m >/dev/null
echo '/dev/vg0/home /srv/home ext4 defaults 0 2' >>/etc/fstab
echo '/dev/mapper/srv /srv/data ext4 _netdev,x-systemd.device-timeout=5min 0 2' >>/etc/fstab
systemctl daemon-reload; systemctl start /srv/home /srv/data
mounted
${snapshots(0)}
step done
trap - EXIT
`

/** Writes into both volumes and takes a snapshot of each. */
function snapshots(round: number): string {
  return `
dd if=/dev/urandom of=/srv/home/file-${round} bs=64k count=9 conv=fsync status=none
dd if=/dev/urandom of=/srv/data/file-${round} bs=64k count=7 conv=fsync status=none
sync
lvcreate -q --snapshot --permission r --name h${round} vg0/home >/dev/null
deltamapper snapshot create srv s${round} --deadline 600 >/dev/null`
}

/**
 * What is asked after a boot: both mounts, and the difference since the last boot's snapshots, compared with the
 * devices themselves.
 */
const nextBoot = (round: number) => `${begin}
step mounts
until mounted >/dev/null; do sleep 0.5; done; mounted
sha256sum /srv/home/file-${round - 1} /srv/data/file-${round - 1} >/dev/null
${snapshots(round)}
step thin
deltamapper delta vg0/h${round - 1} vg0/h${round} -o ndjson >/root/thin
lvchange -ay -K vg0/h${round - 1} vg0/h${round}
${check} /dev/vg0/h${round - 1} /dev/vg0/h${round} /root/thin
lvchange -an vg0/h${round - 1} vg0/h${round}; lvremove -q --yes vg0/h${round - 1} >/dev/null
step tracked
if deltamapper delta srv/s${round - 1} srv/s${round} -o ndjson >/root/era 2>/root/why; then
  ${check} /dev/vg0/s${round - 1} /dev/vg0/s${round} /root/era
else
  cat /root/why
fi
deltamapper snapshot delete --yes srv/s${round - 1} >/dev/null
step done
`

/** The agent's death, another version, and a purge. */
const lastBoot = (round: number, newer: string) => `${nextBoot(round)}
step killed
systemctl kill --signal KILL --kill-whom main deltamapper-agent; mounted
until [ "$(systemctl is-active deltamapper-agent)" = active ]; do sleep 0.2; done; mounted
step upgraded
before=$(systemctl show --property ActiveEnterTimestampMonotonic deltamapper-era)
apt-get install --yes --no-install-recommends ${newer} >/root/apt.log 2>&1 || { cat /root/apt.log; exit 1; }
[ "$before" = "$(systemctl show --property ActiveEnterTimestampMonotonic deltamapper-era)" ]
systemctl is-active deltamapper-agent; mounted
${snapshots(round + 1)}
deltamapper delta srv/s${round} srv/s${round + 1} -o ndjson >/root/era
${check} /dev/vg0/s${round} /dev/vg0/s${round + 1} /root/era
step purged
apt-get purge --yes deltamapper 2>&1 | grep '^deltamapper: ' || true
mounted
echo after >/srv/home/after; echo after >/srv/data/after; sync
ls /var/backups/deltamapper-catalog.sqlite
ls -d /usr/lib/deltamapper /var/lib/deltamapper /etc/deltamapper /usr/bin/deltamapper 2>/dev/null || true
step done
trap - EXIT
`

export interface Life {
  readonly boots: readonly { readonly end: 'orderly' | 'power cut'; readonly boot: Boot }[]
}

/**
 * Lives through it.
 *
 * @param reboots after the first boot; every second one follows a power cut
 * @param onBoot told of each boot as it ends
 */
export async function liveInstalled(reboots: number, onBoot: (round: number, boot: Boot) => void): Promise<Life> {
  await using machine = await SystemdMachine.create({ withProgram: false })
  const deb = await quickDeb(machine.folder)
  const newer = await variantOf(deb, { version: '99.0.0' }, machine.folder)
  const boots: { end: 'orderly' | 'power cut'; boot: Boot }[] = []
  for (let round = 0; round <= reboots; round++) {
    const script = round === 0 ? firstBoot(deb) : round === reboots ? lastBoot(round, newer) : nextBoot(round)
    const isCut = round % 2 === 1 && round < reboots
    const boot = await machine.boot(script, { timeoutSeconds: 14 * 60, cutAt: isCut ? '== done' : '' })
    onBoot(round, boot)
    boots.push({ end: isCut ? 'power cut' : 'orderly', boot })
    if (!sectionsOf(boot.said).has('done')) break
  }
  return { boots }
}

export const sectionsOf = (said = ''): Map<string, string> =>
  new Map(
    said
      .split(/^== /m)
      .slice(1)
      .map((part) => [part.slice(0, part.indexOf('\n')), part.slice(part.indexOf('\n') + 1).trim()])
  )

/**
 * What is wrong with a life, if anything: a mount that vanished, a block that was missed, a history that holds where
 * it must not.
 */
export function faults({ boots }: Life): string[] {
  const found: string[] = []
  boots.forEach(({ boot }, round) => {
    const said = sectionsOf(boot.said)
    const wrong = (what: string) => found.push(`boot ${round}: ${what}\n${boot.said ?? boot.console.slice(-3000)}`)
    if (!said.has('done') || /^ended with/m.test(boot.said ?? '')) wrong('it did not get through')
    if (round === 0) return
    if (said.get('mounts') !== '/dev/mapper/vg0-home\n/dev/mapper/srv') wrong('a mount is not there')
    if (!/^differ [1-9]\d*, missed 0, /.test(said.get('thin') ?? '')) wrong('the thin volume')
    const tracked = said.get('tracked') ?? ''
    const afterCut = boots[round - 1]?.end === 'power cut'
    const holds = /^differ [1-9]\d*, missed 0, /.test(tracked)
    if (afterCut ? !/\(DM_HISTORY_BROKEN\)/.test(tracked) : !holds) wrong(`the history after ${boots[round - 1]?.end}`)
  })
  const last = sectionsOf(boots.at(-1)?.boot.said)
  const both = '/dev/mapper/vg0-home\n/dev/mapper/srv'
  if (last.get('killed') !== `${both}\n${both}`) found.push('mounts after the agent was killed')
  if (!last.get('upgraded')?.startsWith(`active\n${both}\ndiffer `)) found.push('mounts or history after the upgrade')
  const purged = last.get('purged') ?? ''
  if (!purged.endsWith(`${both}\n/var/backups/deltamapper-catalog.sqlite`)) found.push(`after the purge: ${purged}`)
  return found
}
