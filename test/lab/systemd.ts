/**
 * A machine with a real systemd, udev and LVM under a real kernel, all of Debian 13: what units, fstab entries and sandboxes come to, from
 * power-on to power-off. About 10 s of CPU a boot.
 *
 * Its root is made by mmdebstrap, once, and is a disk image of its own for each machine, which outlives its boots. The checkout is mounted from
 * the host under its own path. After each boot a script runs there, as root and outside of any sandbox; what it prints is the boot's result.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readFileSync } from 'node:fs'
import { cp, mkdir, mkdtemp, open, readFile, rm, symlink, truncate, writeFile } from 'node:fs/promises'
import { arch, platform, tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { completeFolder } from './complete-folder.ts'
import { placeForMemory } from './boot.ts'
import { installRelease, runQuietly } from './debian-release.ts'
import { LabUnavailable, projectFolder } from './packages.ts'
import { ensureRelease, type LabRelease, releaseOf } from './releases.ts'

const mebibyte = 2 ** 20
const packages = 'systemd,systemd-sysv,udev,dbus,lvm2,thin-provisioning-tools,dmsetup,kmod,e2fsprogs,busybox-static'
const folder = join(projectFolder, '.cache', 'lab', 'trixie-systemd-1')

/** Makes the root unless it is there. Throws LabUnavailable where it cannot be had. */
export async function ensureSystemdRoot(): Promise<string> {
  if (platform() !== 'linux' || arch() !== 'x64') throw new LabUnavailable('a machine with systemd needs x86-64 Linux')
  await completeFolder(folder, (root, work) => installRelease('trixie', packages, { root, work }))
  return folder
}

/** Whose kernel it boots; all else is of Debian 13. */
export function kernelRelease(): LabRelease {
  return releaseOf(process.env['LAB_RELEASE']) ?? 'trixie'
}

export interface Boot {
  /** What the script has printed, stderr included; undefined when the machine ended before it did. */
  readonly said: string | undefined
  readonly seconds: number
  /** The kernel's and systemd's messages. */
  readonly console: string
}

export class SystemdMachine implements AsyncDisposable {
  readonly #job: string
  readonly #lab: string

  private constructor(job: string, lab: string) {
    this.#job = job
    this.#lab = lab
  }

  /**
   * @param diskBytes of its second disk, /dev/ubdb, which is blank
   * @param withProgram whether `deltamapper` and its units are there, those of the checkout; a package brings its own
   */
  static async create({ diskBytes = 1024 * mebibyte, withProgram = true } = {}): Promise<SystemdMachine> {
    const [lab, root] = await Promise.all([ensureRelease(kernelRelease()), ensureSystemdRoot()])
    const job = await mkdtemp(join(tmpdir(), 'deltamapper-systemd-'))
    const own = join(job, 'root')
    await cp(root, own, { recursive: true, verbatimSymlinks: true, filter: (from) => !from.startsWith(`${root}/dev/`) })
    await furnish(own, lab)
    if (withProgram) await putProgram(own)
    for (const [name, bytes] of [['root.img', 3072 * mebibyte] as const, ['data.img', diskBytes] as const]) {
      await writeFile(join(job, name), '')
      await truncate(join(job, name), bytes)
    }
    await runQuietly('mke2fs', ['-q', '-F', '-t', 'ext4', '-d', own, join(job, 'root.img')], job)
    await rm(own, { recursive: true })
    return new SystemdMachine(job, lab)
  }

  /** For files that the machine is to see: it does under the same path. */
  get folder(): string {
    return this.#job
  }

  /**
   * Boots, runs a bash script when the machine is up, and ends when the machine does: it is powered off in order after the script.
   *
   * @param cutAt the last line of the script's output: then the power is cut instead, and nothing is done in order
   */
  async boot(script: string, { timeoutSeconds = 300, cutAt = '' } = {}): Promise<Boot> {
    const result = join(this.#job, 'result')
    // (What is printed reaches the host with a sync. A machine that goes on would be powered off in order.)
    await writeFile(join(this.#job, 'script'), cutAt === '' ? script : `${script}\nsync; sleep infinity\n`)
    for (const each of [result, join(this.#job, 'said')]) await rm(each, { force: true })
    const log = await open(join(this.#job, 'console'), 'w')
    const began = performance.now()
    const kernel = spawn(
      join(this.#lab, 'usr/bin/linux.uml'),
      [
        ...['mem=1024M', 'root=/dev/ubda', 'rootfstype=ext4', 'rw', 'panic=1', 'init=/lib/systemd/systemd'],
        // (Node's use of io_uring corrupts the memory of user-mode Linux.)
        'sysctl.kernel.io_uring_disabled=2',
        ...[`ubd0=${join(this.#job, 'root.img')}`, `ubd1=${join(this.#job, 'data.img')}`, `uml_dir=${this.#job}`],
        // (Kernels before 6.16 take it for a word to the first program, which minds none.)
        'seccomp=auto',
        ...['con=null', 'con0=null,fd:1', 'systemd.show_status=auto', `systemd.setenv=JOB=${this.#job}`]
      ],
      {
        stdio: ['ignore', log.fd, log.fd],
        detached: true,
        env: { PATH: process.env['PATH'], HOME: this.#job, TMPDIR: placeForMemory(1024) }
      }
    )
    const ended = once(kernel, 'exit')
    const end = () => process.kill(-(kernel.pid ?? 0), 'SIGKILL')
    const timer = setTimeout(end, timeoutSeconds * 1000)
    const printed = join(this.#job, 'said')
    const cut = cutAt === '' ? undefined : setInterval(() => saysLine(printed, cutAt) && end(), 100)
    await ended
    clearTimeout(timer)
    clearInterval(cut)
    await log.close()
    const said = [result, printed].find((each) => existsSync(each))
    return {
      said: said === undefined ? undefined : await readFile(said, 'utf8'),
      seconds: Math.round((performance.now() - began) / 1000),
      console: await readFile(join(this.#job, 'console'), 'utf8')
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await rm(this.#job, { recursive: true, force: true })
  }
}

function saysLine(file: string, line: string): boolean {
  return existsSync(file) && readFileSync(file, 'utf8').split('\n').includes(line)
}

/** Where the checkout is inside: units see nothing of /tmp and /home, where it may be on the machine. */
const CHECKOUT = '/opt/deltamapper'

/** `deltamapper` as the checkout has it, and its units. */
async function putProgram(root: string): Promise<void> {
  const units = join(projectFolder, 'deploy/systemd')
  await cp(units, join(root, 'etc/systemd/system'), {
    recursive: true,
    filter: (from) => from === units || /\.(service|timer)(\.d)?($|\/)/.test(from)
  })
  await cp(join(units, 'agent.yaml'), join(root, 'etc/deltamapper/agent.yaml'), { recursive: true })
  const command = `#!/bin/sh\nexec ${CHECKOUT}/node_modules/.bin/node ${CHECKOUT}/bin/deltamapper.js "$@"\n`
  await writeFile(join(root, 'usr/bin/deltamapper'), command, { mode: 0o755 })
}

/** What makes the root a machine of ours: kernel modules, and what runs the script. */
async function furnish(root: string, lab: string): Promise<void> {
  const put = async (path: string, text: string, mode = 0o644) => {
    await mkdir(dirname(join(root, path)), { recursive: true })
    await writeFile(join(root, path), text, { mode })
  }
  await cp(join(lab, 'usr/lib/uml/modules'), join(root, 'usr/lib/modules'), { recursive: true })
  await put('etc/fstab', '')
  await put('etc/hostname', 'lab\n')
  // (How long a busy machine takes says nothing.)
  await put(
    'etc/systemd/system.conf.d/patience.conf',
    '[Manager]\nDefaultTimeoutStartSec=15min\nDefaultTimeoutStopSec=15min\n'
  )
  // (User-mode Linux's disks are none that LVM knows by itself.)
  await put('etc/lvm/lvmlocal.conf', 'devices { types=["ubd",16] use_devicesfile=0 }\n')
  const seen = [
    [projectFolder, CHECKOUT],
    [tmpdir(), tmpdir()]
  ]
  const mounts = seen.map(([from, at]) => `busybox mount -t hostfs -o ${from} none ${at}`)
  const folders = seen.map(([, at]) => `mkdir -p ${at}`)
  await put('usr/local/sbin/host-folders', `#!/bin/sh\nset -e\n${[...folders, ...mounts].join('\n')}\n`, 0o755)
  await put(
    'etc/systemd/system/host-folders.service',
    `[Unit]
DefaultDependencies=no
After=systemd-tmpfiles-setup.service systemd-remount-fs.service tmp.mount
Before=sysinit.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/host-folders
[Install]
WantedBy=sysinit.target
`
  )
  await symlink('/dev/null', join(root, 'etc/systemd/system/e2scrub_reap.service'))
  // (Not a part of multi-user.target: it waits for that.)
  await put(
    'etc/systemd/system/script.service',
    `[Unit]
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/bin/bash -c 'bash "$JOB/script" >"$JOB/said" 2>&1; mv "$JOB/said" "$JOB/result"; sync; systemctl poweroff'
[Install]
WantedBy=default.target
`
  )
  for (const [target, unit] of [
    ['sysinit.target', 'host-folders.service'],
    ['graphical.target', 'script.service']
  ]) {
    const wants = join(root, `etc/systemd/system/${target}.wants`)
    await mkdir(wants, { recursive: true })
    await symlink(`../${unit}`, join(wants, unit ?? ''))
  }
}

// `node test/lab/systemd.ts` makes the root: how scripts/test.mjs does it before the tests.
if (import.meta.main) {
  try {
    console.log(await ensureSystemdRoot())
  } catch (error) {
    console.error((error as Error).message)
    process.exitCode = error instanceof LabUnavailable ? 3 : 1
  }
}
