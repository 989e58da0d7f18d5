/**
 * Runs what an image has as its pods do, as far as that goes without a container engine: command, security context and
 * mounts are the manifests' own. Seccomp and cgroups (with their device rules) are an engine's, and are not there.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmod, mkdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseAllDocuments } from 'yaml'

interface SecurityContext {
  readonly runAsUser?: number
  readonly runAsGroup?: number
  readonly privileged?: boolean
  readonly allowPrivilegeEscalation?: boolean
  readonly readOnlyRootFilesystem?: boolean
  readonly capabilities?: { readonly add?: readonly string[]; readonly drop?: readonly string[] }
}

interface Pod {
  readonly securityContext?: SecurityContext
  readonly containers: readonly {
    readonly name: string
    readonly args: readonly string[]
    readonly securityContext?: SecurityContext
    readonly volumeMounts: readonly { readonly name: string; readonly mountPath: string; readonly readOnly?: boolean }[]
  }[]
}

export interface AsPod {
  /** An image's files, as a folder. */
  readonly root: string
  /** A manifest with a DaemonSet or a Deployment, and the container in it. */
  readonly manifest: string
  readonly container: string
  /** In place of what mounts have in a cluster: a folder or file for each path. Others are empty, and in memory. */
  readonly mounts: Readonly<Record<string, string>>
  /** In place of what the manifest says. */
  readonly securityContext?: SecurityContext
  /** Log of the program. */
  readonly log: string
}

/** Starts a container's program, and waits until it listens. */
export async function startAsPod(options: AsPod): Promise<ChildProcess> {
  const { root, mounts, container: name, manifest } = options
  const pod = await podOf(manifest)
  const container = pod.containers.find((each) => each.name === name)
  if (container === undefined) throw new Error(`${manifest} has no container ${name}`)
  const context = { ...pod.securityContext, ...container.securityContext, ...options.securityContext }
  const given = Object.entries(mounts)
  const mounted = new Map(container.volumeMounts.map((each) => [each.mountPath, each]))
  const lines = [
    'set -eu',
    'mount --make-rprivate /',
    'mount --bind "$ROOT" "$ROOT"',
    'mount -t proc proc "$ROOT/proc"'
  ]
  for (const { mountPath, readOnly = false } of mounted.values()) {
    const from = mounts[mountPath]
    if (given.some(([path]) => path.startsWith(`${mountPath}/`))) continue
    lines.push(...mountLines(mountPath, from, readOnly))
  }
  for (const [path, from] of given) {
    if (!mounted.has(path)) lines.push(...mountLines(path, from, true))
  }
  if (context.readOnlyRootFilesystem) lines.push('mount -o remount,bind,ro "$ROOT"')
  const program = [...identity(context), 'deltamapper', ...container.args].map((each) => `'${each}'`).join(' ')
  lines.push(`exec chroot "$ROOT" ${program} >"$LOG" 2>&1`)
  const own = ['--mount', '--pid', '--ipc', '--fork', '--kill-child=SIGTERM']
  const child = spawn('unshare', [...own, 'sh', '-c', lines.join('\n')], {
    stdio: ['ignore', 'ignore', 'inherit'],
    env: { PATH: process.env['PATH'], ROOT: root, LOG: options.log },
    // (unshare ignores signals while its child runs.)
    detached: true
  })
  await once(child, 'spawn')
  while (!(await readFile(options.log, 'utf8').catch(() => '')).includes('"msg":"listening"')) {
    await checkRuns(child, options.log)
    await sleep(100)
  }
  return child
}

async function checkRuns({ exitCode, signalCode }: ChildProcess, log: string): Promise<void> {
  if (exitCode === null && signalCode === null) return
  throw new Error(`the pod's program has ended: ${await readFile(log, 'utf8')}`)
}

/** Ends it in order. @throws Error with its log if it had ended by itself */
export async function endPod(child: ChildProcess, log: string): Promise<void> {
  await checkRuns(child, log)
  const ended = once(child, 'exit')
  process.kill(-(child.pid ?? 0), 'SIGTERM')
  await ended
}

async function podOf(manifest: string): Promise<Pod> {
  for (const document of parseAllDocuments(await readFile(manifest, 'utf8'))) {
    const { kind, spec } = document.toJS() as { kind: string; spec: { template: { spec: Pod } } }
    if (kind === 'DaemonSet' || kind === 'Deployment') return spec.template.spec
  }
  throw new Error(`${manifest} has no pods`)
}

/** The mount point is made, as a container engine makes it. */
function mountLines(path: string, from: string | undefined, readOnly: boolean): string[] {
  const at = `"$ROOT${path}"`
  if (from === undefined) return [`mkdir -p ${at}`, `mount -t tmpfs -o mode=1777 tmpfs ${at}`]
  return [
    `if [ -d '${from}' ]; then mkdir -p ${at}; else mkdir -p "$(dirname ${at})"; touch ${at}; fi`,
    `mount --rbind '${from}' ${at}`,
    ...(readOnly ? [`mount -o remount,bind,ro ${at}`] : [])
  ]
}

/** Rights, as a container engine leaves them to a program: the words for setpriv(1). */
function identity(context: SecurityContext): string[] {
  const { runAsUser = 0, runAsGroup = runAsUser, privileged = false, capabilities } = context
  const words = ['setpriv', '--reuid', String(runAsUser), '--regid', String(runAsGroup), '--clear-groups']
  if (!privileged && context.allowPrivilegeEscalation === false) words.push('--no-new-privs')
  if (capabilities?.drop?.includes('ALL')) {
    const added = (capabilities.add ?? []).map((each) => `+${each.toLowerCase()}`)
    words.push('--inh-caps=-all', `--bounding-set=${['-all', ...added].join(',')}`)
  }
  return words
}

/** The chart's variant `agent.privileged: false`. */
const narrow: SecurityContext = {
  privileged: false,
  allowPrivilegeEscalation: false,
  capabilities: { add: ['SYS_ADMIN'], drop: ['ALL'] }
}

export interface Trial {
  /** An image's files, as a folder. */
  readonly root: string
  /** The checkout. */
  readonly project: string
  /** A recorded pool, and a folder for what is written. */
  readonly pool: string
  readonly work: string
  /** Asks at an endpoint, and throws if the answer is another than it should be. */
  readonly ask: (endpoint: string) => Promise<void>
}

/** Agent and router of an image in their pods' contexts, and a client that asks the router. @returns what was tried */
export async function tryAsPods(trial: Trial): Promise<string[]> {
  await askThrough(trial, 'privileged', undefined)
  await askThrough(trial, 'narrow', narrow)
  const routers = 'with a router as its pod has it (user 65532, no capability, a root that is read-only)'
  return [
    `agent as its pod has it (privileged, a root that is read-only), ${routers}: the same answer`,
    `agent with CAP_SYS_ADMIN alone, ${routers}: the same answer`
  ]
}

async function askThrough(
  { root, project, pool, work, ask }: Trial,
  name: string,
  securityContext: SecurityContext | undefined
): Promise<void> {
  const place = join(work, name)
  const run = join(place, 'run')
  await mkdir(run, { recursive: true })
  await chmod(run, 0o1777)
  const socket = (each: string) => `unix:///run/deltamapper/${each}.sock`
  const configurations = {
    // (Whoever built this is another user than the router's pod.)
    agent: {
      listen: [socket('agent')],
      socketMode: '0666',
      catalog: '/var/lib/deltamapper/catalog',
      recorded: { demo: '/pool' }
    },
    router: {
      ...{ driverName: 'topolvm.io', listen: [socket('csi')] },
      static: { nodes: { here: socket('agent') }, handles: [{ pattern: '(?<vg>[^/]+)/(?<lv>.+)' }] }
    }
  }
  const start = async (container: 'agent' | 'router', manifest: string, more: Record<string, string>) => {
    const file = join(place, `${container}.yaml`)
    await writeFile(file, JSON.stringify(configurations[container]))
    const mounts = { '/run/deltamapper': run, [`/etc/deltamapper/${container}.yaml`]: file, ...more }
    const own = container === 'agent' && securityContext ? { securityContext } : {}
    const log = join(place, `${container}.log`)
    const child = await startAsPod({ root, manifest: join(project, manifest), container, mounts, log, ...own })
    return () => endPod(child, log)
  }
  const ends = [await start('agent', 'deploy/daemonset.yaml', { '/dev': '/dev', '/pool': pool })]
  try {
    ends.push(await start('router', 'deploy/drivers/topolvm/deployment.yaml', {}))
    await ask(`unix://${join(run, 'csi.sock')}`)
  } finally {
    for (const end of ends) await end()
  }
}
