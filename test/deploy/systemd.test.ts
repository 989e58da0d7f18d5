/**
 * The units for hosts without Kubernetes: systemd itself finds nothing wrong with them, they start commands that there are, and their
 * example configurations are ones that these take.
 */
import { cp, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { basename, dirname, join } from 'node:path'
import test from 'ava'
import { parse } from 'yaml'
import { agentConfig } from '../../src/agent/config.ts'
import { routerConfig } from '../../src/router/config.ts'
import { runCommand } from '../cli/run-command.ts'
import { systemdAnalyze, systemUnits } from '../lab/deploy-tools.ts'
import { project, runTool, toolTest } from './tools.ts'

const folder = join(project, 'deploy/systemd')
const units = (await readdir(folder)).filter((name) => /\.(service|timer)$/.test(name))

/** The settings of a unit; of one that is given more than once, all. */
async function settings(unit: string): Promise<Map<string, string[]>> {
  const found = new Map<string, string[]>()
  for (const line of (await readFile(join(folder, unit), 'utf8')).split('\n')) {
    const [, name, value] = /^(\w+)=(.*)$/.exec(line) ?? []
    if (name !== undefined && value !== undefined) found.set(name, [...(found.get(name) ?? []), value])
  }
  return found
}

toolTest('systemd finds nothing wrong with the units', async (t) => {
  for (const each of ['agent.service', 'router.service', 'backup.service', 'backup.timer']) {
    t.true(units.includes(`deltamapper-${each}`))
  }
  // A root of their own, where what they start is installed.
  const root = await mkdtemp(join(tmpdir(), 'units-'))
  t.teardown(() => rm(root, { recursive: true }))
  const place = join(root, 'etc/systemd/system')
  await cp(systemUnits(), place, { recursive: true, verbatimSymlinks: true })
  for (const each of ['usr/bin', 'bin', 'sbin', 'usr/sbin']) await mkdir(join(root, each), { recursive: true })
  for (const each of ['usr/bin/deltamapper', 'bin/sh', 'sbin/dmsetup', 'bin/systemctl', 'usr/bin/node']) {
    await writeFile(join(root, each), '#!/bin/sh\n', { mode: 0o755 })
  }
  for (const unit of units) await cp(join(folder, unit), join(place, unit))
  for (const unit of units) {
    const { status, stderr } = await runTool(systemdAnalyze(), [
      'verify',
      '--man=no',
      `--root=${root}`,
      `/etc/systemd/system/${unit}`
    ])
    // (Targets of a system that is not there.)
    const said = stderr
      .split('\n')
      .filter(
        (line) => line !== '' && !/Unit \S+ not found|Failed to (open|determine) .*(cgroup|supported)/i.test(line)
      )
    t.deepEqual(said, [], unit)
    t.is(status, 0, `${unit}: ${stderr}`)
  }
})

toolTest('the router is shut in as far as systemd can, the agent as far as device-mapper allows', async (t) => {
  const exposure = async (unit: string) => {
    const { stdout, stderr } = await runTool(systemdAnalyze(), [
      'security',
      '--offline=true',
      '--no-pager',
      join(folder, unit)
    ])
    const [, figure] = /Overall exposure level for \S+: ([\d.]+)/.exec(stdout) ?? []
    if (figure === undefined) throw new Error(`${stdout}${stderr}`)
    return Number(figure)
  }
  t.true((await exposure('deltamapper-router.service')) < 2)
  t.true((await exposure('deltamapper-agent.service')) < 6)
})

test('an active volume needs no agent: nothing that its unit is bound to may end with one', async (t) => {
  const era = await settings('deltamapper-era.service')
  // What systemd.unit(5) has that stops a unit with another.
  for (const each of ['Requires', 'Requisite', 'BindsTo', 'PartOf', 'ConsistsOf', 'StopPropagatedFrom', 'Conflicts']) {
    t.deepEqual(era.get(each), undefined, each)
  }
  t.deepEqual(era.get('Wants'), ['deltamapper-agent.service', 'remote-fs-pre.target'])
  // Unmounted, then deactivated, then the agent: in that order.
  t.true(era.get('After')?.includes('deltamapper-agent.service'))
  t.true(era.get('Before')?.includes('remote-fs-pre.target'))
  // blkdeactivate, which LVM runs at a shutdown, removes the devices of whoever is later.
  for (const unit of ['deltamapper-era.service', 'deltamapper-agent.service']) {
    const after = (await settings(unit)).get('After') ?? []
    t.true(after.flatMap((each) => each.split(' ')).includes('blk-availability.service'), unit)
  }
  // Devices that are late are waited for, and what fails is tried again.
  t.regex(era.get('ExecStart')?.[0] ?? '', / era activate --all --wait \d+$/)
  t.deepEqual(era.get('Restart'), ['on-failure'])
  for (const file of ['deploy/systemd/deltamapper-era.service', 'docs/tracked-volumes.md']) {
    const text = await readFile(join(project, file), 'utf8')
    t.notRegex(text, /x-systemd\.(requires|requires-mounts-for)=deltamapper/, file)
    t.true(text.includes('_netdev,x-systemd.device-timeout=5min'), file)
  }
})

test('what the agent has started finds its modules loaded, because its sandbox hides them', async (t) => {
  const agent = await settings('deltamapper-agent.service')
  t.deepEqual(agent.get('ProtectKernelModules'), ['yes'])
  const era = await settings('deltamapper-agent.service.d/era.conf')
  const units = era.get('Wants')?.[0]?.split(' ') ?? []
  t.true(units.includes('modprobe@dm_snapshot.service'))
  t.deepEqual(era.get('After')?.[0]?.split(' '), units)
})

/** The sources that a command's process may load: what its file imports, at once or later, and what that does. */
async function loadedBy(entry: string): Promise<string[]> {
  const found = new Set<string>()
  const waiting = [entry]
  for (let file; (file = waiting.pop()) !== undefined;) {
    if (found.has(file)) continue
    found.add(file)
    const text = await readFile(join(project, file), 'utf8')
    const imports = /(?:^(?:import|export) (?!type)[^;]*?from |^import |import\()'(\.[^']+\.ts)'/gm
    for (const [, path = ''] of text.matchAll(imports)) waiting.push(join(dirname(file), path))
  }
  return [...found]
}

/** What the sources of a unit's process start, and what that needs of the unit beside files that may be read. */
const lvmReports = {
  // A lock even for reports; udev's cookies are semaphores, its events come over netlink.
  ReadWritePaths: ['/run/lock'],
  RestrictAddressFamilies: ['AF_UNIX', 'AF_NETLINK'],
  CapabilityBoundingSet: ['CAP_SYS_ADMIN', 'CAP_DAC_OVERRIDE', 'CAP_SYS_NICE', 'CAP_IPC_OWNER']
}
const readsDevices = { CapabilityBoundingSet: ['CAP_SYS_ADMIN', 'CAP_DAC_OVERRIDE'] }
const startedBy: Record<string, { programs: string; needs: Record<string, string[]> }> = {
  'src/agent/lvm/report.ts': { programs: 'lvs, vgs', needs: lvmReports },
  'src/agent/lvm/filter.ts': { programs: 'lvmconfig', needs: lvmReports },
  'src/agent/era/boundary/lower-snapshot.ts': {
    programs: "lvs, lvcreate, lvremove, the operator's own command, and modprobe, which LVM starts",
    needs: {
      ...lvmReports,
      ReadWritePaths: ['/run/lock', '-/etc/lvm', '-/run/lvm'],
      CapabilityBoundingSet: [...lvmReports.CapabilityBoundingSet, 'CAP_MKNOD'],
      // (modprobe finds nothing to do: ProtectKernelModules hides the modules.)
      Wants: ['modprobe@dm_snapshot.service', 'modprobe@dm_era.service']
    }
  },
  'src/devicemapper/tools/tool.ts': { programs: 'thin_delta, thin_dump', needs: readsDevices },
  'native/helper-program.ts': { programs: 'node, for calls to device-mapper', needs: readsDevices },
  'native/helper-process.ts': { programs: 'node, for calls to device-mapper', needs: {} },
  'native/helper-dialogue.ts': { programs: 'node, for leases', needs: {} },
  'src/agent/lvm/command.ts': { programs: 'what those above have it start', needs: {} }
}
/** What would keep from an agent's programs what they are for, or would end them. */
const keptFromDevices = ['PrivateDevices', 'DevicePolicy', 'MemoryDenyWriteExecute', 'PrivateUsers', 'SystemCallFilter']

test("everything that a unit's process starts can do its work within the unit's sandbox", async (t) => {
  const starts = /from 'node:child_process'|\bstartCommand\(/
  const starters = async (command: string) => {
    const loaded = await loadedBy(`src/cli/commands/${command}.ts`)
    t.true(loaded.length > 20, `${command}: what it loads was found`)
    const texts = await Promise.all(loaded.map((file) => readFile(join(project, file), 'utf8')))
    return loaded.filter((_, i) => starts.test(texts[i] ?? '')).sort()
  }
  // A client of the agent starts nothing, and its sandbox allows for nothing. What a router's kubeconfig names has what the
  // router has: files to read, and the network.
  t.deepEqual(await starters('router'), ['src/kubernetes/exec-credentials.ts'])
  t.deepEqual(await starters('era'), [])
  // A new one has to be thought about.
  t.deepEqual(await starters('agent'), Object.keys(startedBy).sort())

  const [agent, era] = [
    await settings('deltamapper-agent.service'),
    await settings('deltamapper-agent.service.d/era.conf')
  ]
  const words = (name: string) =>
    [agent, era].flatMap((each) => each.get(name) ?? []).flatMap((each) => each.split(' '))
  for (const [file, { programs, needs }] of Object.entries(startedBy)) {
    for (const [name, wanted] of Object.entries(needs)) {
      t.deepEqual(
        wanted.filter((each) => !words(name).includes(each)),
        [],
        `${file} (${programs}): ${name}`
      )
    }
  }
  for (const name of keptFromDevices) t.deepEqual(words(name), [], name)
  // What the era unit's stop asks systemd over its socket.
  const [stop = ''] = (await settings('deltamapper-era.service')).get('ExecStop') ?? []
  t.true(stop.includes('systemctl list-jobs'))
  t.deepEqual((await settings('deltamapper-era.service')).get('RestrictAddressFamilies'), ['AF_UNIX'])
})

test('agent and router are started with a configuration that they take', async (t) => {
  const configurations = { agent: agentConfig, router: routerConfig }
  for (const [name, schema] of Object.entries(configurations)) {
    const [start] = (await settings(`deltamapper-${name}.service`)).get('ExecStart') ?? []
    const [program = '', command, option, file = ''] = start?.split(' ') ?? []
    t.deepEqual([basename(program), command, option], ['deltamapper', name, '--config'])
    t.regex((await runCommand([name, '--help'])).stdout, /--config <file>/)
    t.truthy(schema.parse(parse(await readFile(join(folder, basename(file)), 'utf8'))))
  }
})

test('sockets and catalog are in folders that systemd makes', async (t) => {
  for (const name of ['agent', 'router']) {
    const unit = await settings(`deltamapper-${name}.service`)
    const configuration = parse(await readFile(join(folder, `${name}.yaml`), 'utf8')) as { listen: string[] }
    const [socket = ''] = configuration.listen
    t.true(socket.startsWith(`unix:///run/${unit.get('RuntimeDirectory')?.[0]}/`), socket)
  }
  const agent = await settings('deltamapper-agent.service')
  t.true(agentConfig.parse({}).catalog.startsWith(`/var/lib/${agent.get('StateDirectory')?.[0]}/`))
})

test('systemd waits for longer than streams are drained', async (t) => {
  for (const [name, { drainSeconds }] of Object.entries({
    agent: agentConfig.parse({}),
    router: routerConfig.parse(parse(await readFile(join(folder, 'router.yaml'), 'utf8')))
  })) {
    const [seconds] = (await settings(`deltamapper-${name}.service`)).get('TimeoutStopSec') ?? []
    t.true(Number(seconds) > drainSeconds + 5)
  }
})
