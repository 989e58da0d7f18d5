/**
 * Which cluster, and who we are there, as kubectl reads it (client-go, tools/clientcmd): a kubeconfig file, several in
 * KUBECONFIG, or the service account of a pod.
 *
 * The client library reads kubeconfigs in part: of several files it lets the last one win, it knows no `tokenFile`, and
 * it leaves out what it does not know. Whoever is not who they were meant to be is refused at best, and may do too much
 * at worst. So the files are read and merged here, and what cannot be kept is refused.
 */
import { existsSync, statSync } from 'node:fs'
import { homedir } from 'node:os'
import { delimiter, dirname, isAbsolute, join } from 'node:path'
import { KubeConfig, type RequestContext } from '@kubernetes/client-node'
import { parse, YAMLParseError } from 'yaml'
import { packageVersion } from '../grpc/identity.ts'
import { readOrdinaryFile, readOrdinaryFileSync } from '../ordinary-file.ts'
import { EXEC, ExecCredentials } from './exec-credentials.ts'
import { fieldOf, listOf, textOf } from './object.ts'

type Fields = Record<string, unknown>
type Authenticator = Parameters<KubeConfig['addAuthenticator']>[0]
type User = Parameters<Authenticator['applyAuthentication']>[0]

/**
 * The lists of a kubeconfig: what their entries hold, and which fields of that are paths, from the file's folder on.
 */
const LISTS = [
  { name: 'clusters', holds: 'cluster', paths: ['certificate-authority'] },
  { name: 'users', holds: 'user', paths: ['client-certificate', 'client-key', 'tokenFile'] },
  { name: 'contexts', holds: 'context', paths: [] }
] as const

/** More of somebody else than the name. Without it we would have other rights than was meant. */
const IMPERSONATION_NOT_KEPT = ['as-uid', 'as-groups', 'as-user-extra']
/** Who a context without a user is. */
const NOBODY = 'deltamapper: nobody'
/** The auth-provider that stands for a `tokenFile`. */
const TOKEN_FILE = 'deltamapper: tokenFile'
/** How long a token that was read is used, in milliseconds; as long as client-go uses one. */
const TOKEN_AGE_MS = 60_000
/** Of plugins that are told nothing else (client-go, plugin/pkg/client/auth/exec). */
const EXEC_INFO = 'KUBERNETES_EXEC_INFO'

/** What the library asks the API server with, as somebody that its log can name. */
export class NamedConfig extends KubeConfig {
  readonly #userAgent = `deltamapper/${packageVersion()}`
  readonly #fromFile = new TokenFromFile()
  readonly #fromProgram = new ExecCredentials()

  constructor() {
    super()
    this.addAuthenticator(this.#fromFile)
    this.addAuthenticator(this.#fromProgram)
  }

  /** The server does not take who we say we are: credentials that can be had anew are, for the next request. */
  forgetCredentials(): void {
    this.#fromFile.forget()
    this.#fromProgram.forget()
  }

  override async applySecurityAuthentication(request: RequestContext): Promise<void> {
    await super.applySecurityAuthentication(request)
    request.setHeaderParam('User-Agent', this.#userAgent)
  }
}

/**
 * Reads what says where the cluster is. Connects to nothing.
 *
 * @param file a kubeconfig; unless given, those of KUBECONFIG, ~/.kube/config, or what a pod has, whichever is there
 * @param context one of its contexts other than the current one
 * @returns undefined where nothing says which cluster
 * @throws Error, of which the first line says what is wrong; what follows may quote secrets
 */
export function loadKubeConfig(file?: string, context?: string): NamedConfig | undefined {
  const config = new NamedConfig()
  const files = file === undefined ? filesOfSurroundings() : [file]
  if (files.length === 0) {
    config.loadFromCluster()
    const inPod = process.env['KUBERNETES_SERVICE_HOST'] !== undefined && existsSync(tokenPathOf(config))
    if (!inPod) return undefined
  } else {
    const merged = mergedFiles(files)
    const current = context ?? textOf(merged, 'current-context')
    config.loadFromString(JSON.stringify({ ...merged, 'current-context': current }))
    checkCurrent(config, merged)
  }
  return config
}

/** As kubectl looks for them. Those of KUBECONFIG that are not there do not count, unless none is. */
function filesOfSurroundings(): string[] {
  const named = (process.env['KUBECONFIG'] ?? '').split(delimiter).filter((path) => path !== '')
  if (named.length > 0) {
    const there = named.filter((path) => existsSync(path))
    return there.length > 0 ? there : named.slice(0, 1)
  }
  const usual = join(homedir(), '.kube', 'config')
  return existsSync(usual) ? [usual] : []
}

/** Of what several files have, the first one's counts. */
function mergedFiles(files: readonly string[]): Fields {
  const merged: Fields = {}
  for (const file of files) {
    const content = parsedFile(file)
    merged['current-context'] ??= textOf(content, 'current-context')
    for (const { name, holds, paths } of LISTS) {
      const entries = (merged[name] ??= []) as Fields[]
      for (const entry of listOf(content, name)) {
        if (entries.some((known) => known['name'] === fieldOf(entry, 'name'))) continue
        entries.push({ ...(entry as Fields), [holds]: kept(fieldOf(entry, holds), paths, dirname(file)) })
      }
    }
  }
  // Without a user the library forgets what it is to trust the server by, too.
  const nobody = { name: NOBODY, user: {} }
  merged['users'] = [...listOf(merged, 'users'), nobody]
  for (const each of listOf(merged, 'contexts')) {
    const context = fieldOf(each, 'context')
    if (typeof context === 'object' && context !== null) (context as Fields)['user'] ||= NOBODY
  }
  return merged
}

/** @throws what reading throws, and Errors that quote nothing of it */
function parsedFile(file: string): unknown {
  const text = readOrdinaryFileSync(file).toString('utf8')
  let content: unknown
  try {
    content = parse(text)
  } catch (error) {
    const [at] = error instanceof YAMLParseError ? (error.linePos ?? []) : []
    // eslint-disable-next-line preserve-caught-error -- it quotes the file, which may hold a token
    throw new Error(`${file} is no YAML${at ? ` (line ${at.line}, column ${at.col})` : ''}`)
  }
  if (typeof content === 'object' && content !== null && !Array.isArray(content)) return content
  throw new Error(`${file} holds no kubeconfig`)
}

/** An entry as the library understands it. */
function kept(held: unknown, paths: readonly string[], folder: string): unknown {
  if (typeof held !== 'object' || held === null) return held
  const fields: Fields = { ...held }
  for (const path of paths) {
    // What stands in the kubeconfig itself counts before a file; to the library it is the other way round.
    if (textOf(fields, `${path}-data`)) delete fields[path]
    const named = fields[path]
    if (typeof named !== 'string' || named === '') continue
    const whole = isAbsolute(named) ? named : join(folder, named)
    // The library reads it with each request, and would wait for whoever writes to a FIFO.
    if (!statSync(whole).isFile()) throw new Error(`its ${path}, ${whole}, is no file`)
    fields[path] = whole
  }
  const unknown = IMPERSONATION_NOT_KEPT.find((each) => fields[each] !== undefined)
  if (unknown !== undefined) throw new Error(`a user of it is to act as somebody else by ${unknown}, which is not kept`)
  if (typeof fields['tokenFile'] === 'string' && fields['tokenFile'] !== '') {
    fields['auth-provider'] = { name: TOKEN_FILE, config: { path: fields['tokenFile'] } }
    // Which counts where there are both.
    delete fields['token']
  }
  if (typeof fields['exec'] === 'object' && fields['exec'] !== null) {
    fields['auth-provider'] = { name: EXEC, config: { plugin: execKept(fields['exec'], folder) } }
    delete fields['exec']
  }
  return fields
}

/** A plugin that makes credentials. With a slash in its name it lies beside the file; else it is found through PATH. */
function execKept(exec: object, folder: string): Fields {
  const [command, apiVersion] = [textOf(exec, 'command') ?? '', textOf(exec, 'apiVersion')]
  const info = { kind: 'ExecCredential', apiVersion, spec: { interactive: false } }
  return {
    ...exec,
    command: command.includes('/') && !isAbsolute(command) ? join(folder, command) : command,
    env: [...listOf(exec, 'env'), { name: EXEC_INFO, value: JSON.stringify(info) }]
  }
}

/** What the current context names has to be there: the library would go on as nobody. */
function checkCurrent(config: KubeConfig, merged: Fields): void {
  const name = config.getCurrentContext()
  const context = name === undefined ? null : config.getContextObject(name)
  if (context === null) throw new Error(name === undefined ? 'it has no current context' : `it has no context ${name}`)
  if (config.getCurrentCluster() === null) throw new Error(`its context ${name} names a cluster that it has not`)
  if (config.getCurrentUser() === null) throw new Error(`its context ${name} names a user that it has not`)
  const cluster = listOf(merged, 'clusters').find((each) => fieldOf(each, 'name') === context.cluster)
  const user = listOf(merged, 'users').find((each) => fieldOf(each, 'name') === context.user)
  const plugin = fieldOf(user, 'user', 'auth-provider', 'config', 'plugin')
  if (fieldOf(plugin, 'provideClusterInfo') === true) tellCluster(config, fieldOf(cluster, 'cluster'))
}

/** Tells the plugin of the current user which cluster it is for. */
function tellCluster(config: KubeConfig, cluster: unknown): void {
  const env = listOf(config.getCurrentUser(), 'authProvider', 'config', 'plugin', 'env')
  const info = env.find((each) => fieldOf(each, 'name') === EXEC_INFO) as { value: string } | undefined
  if (info === undefined) return
  const told = JSON.parse(info.value) as { spec: Fields }
  const file = textOf(cluster, 'certificate-authority')
  told.spec['cluster'] = {
    ...(cluster as Fields),
    ...(file !== undefined && { 'certificate-authority-data': readOrdinaryFileSync(file).toString('base64') })
  }
  info.value = JSON.stringify(told)
}

/** Reads the token anew now and then: whoever puts it there replaces it before it expires. */
class TokenFromFile implements Authenticator {
  #token = ''
  #readAt = -Infinity

  isAuthProvider(user: User): boolean {
    return fieldOf(user, 'authProvider', 'name') === TOKEN_FILE
  }

  async applyAuthentication(user: User, options: object): Promise<void> {
    if (performance.now() - this.#readAt > TOKEN_AGE_MS) {
      const path = textOf(user, 'authProvider', 'config', 'path') ?? ''
      this.#token = (await readOrdinaryFile(path)).toString('utf8').trim()
      this.#readAt = performance.now()
    }
    // (Its type is of a package that is not here.)
    const { headers = {} } = options as { headers?: Record<string, string> }
    Object.assign(options, { headers: { ...headers, Authorization: `Bearer ${this.#token}` } })
  }

  forget(): void {
    this.#readAt = -Infinity
  }
}

function tokenPathOf(config: KubeConfig): string {
  return textOf(config.getCurrentUser(), 'authProvider', 'config', 'tokenFile') ?? ''
}
