/**
 * Credentials that a program makes: `exec` of a kubeconfig's user, as kubectl runs it (client-go,
 * plugin/pkg/client/auth/exec).
 *
 * The client library runs such programs too. But it looks for them in the current directory where PATH says so, waits
 * for ever, and has their failures look like those of the API server.
 */
import { execFile } from 'node:child_process'
import type { KubeConfig } from '@kubernetes/client-node'
import { DeltamapperError } from '../errors.ts'
import { childEnvironment } from '../search-path.ts'
import { isExhausted, systemRemedy } from '../system-errors.ts'
import { fieldOf, listOf, textOf } from './object.ts'

type Authenticator = Parameters<KubeConfig['addAuthenticator']>[0]
type User = Parameters<Authenticator['applyAuthentication']>[0]

/** The auth-provider that stands for an `exec`, whose fields are its `plugin`. */
export const EXEC = 'deltamapper: exec'

/** How long a program may take, in milliseconds. One that asks somebody gets no answer here. */
const PROGRAM_MS = 60_000
/** Far more than a token and a certificate take. */
const OUTPUT_BYTES = 1024 * 1024

interface Credential {
  readonly token: string | undefined
  /** PEM. */
  readonly certificate: string | undefined
  readonly key: string | undefined
  /** Milliseconds since 1970. */
  readonly expires: number
}

export class ExecCredentials implements Authenticator {
  /** By user; one that is being made is shared. */
  readonly #known = new Map<string, Promise<Credential>>()

  isAuthProvider(user: User): boolean {
    return fieldOf(user, 'authProvider', 'name') === EXEC
  }

  /** @throws DM_ACCESS_DENIED when the program makes none, DM_SYSTEM_REFUSED when it cannot be started for want */
  async applyAuthentication(user: User, options: object): Promise<void> {
    const { token, certificate, key } = await this.#credential(user)
    const { headers = {} } = options as { headers?: Record<string, string> }
    Object.assign(options, {
      ...(token !== undefined && { headers: { ...headers, Authorization: `Bearer ${token}` } }),
      ...(certificate !== undefined && { cert: certificate, key })
    })
  }

  /** Has the next request ask the program again: the server no longer takes what there is. */
  forget(): void {
    this.#known.clear()
  }

  async #credential(user: User): Promise<Credential> {
    const known = this.#known.get(user.name)
    if (known !== undefined) {
      const credential = await known
      if (credential.expires > Date.now()) return credential
      if (this.#known.get(user.name) === known) this.#known.delete(user.name)
      return this.#credential(user)
    }
    const making = credentialOf(user)
    this.#known.set(user.name, making)
    making.catch(() => this.#known.delete(user.name))
    return making
  }
}

async function credentialOf(user: User): Promise<Credential> {
  const plugin = fieldOf(user, 'authProvider', 'config', 'plugin')
  const command = textOf(plugin, 'command') ?? ''
  if (textOf(plugin, 'interactiveMode') === 'Always') {
    throw failed(user, command, 'it wants to ask somebody', `run ${command} on a terminal, or name another user`)
  }
  const output = await outputOf(user, plugin, command)
  const wrong = (what: string) => failed(user, command, what, `run ${command} by hand, and see what it prints`)
  let answer: unknown
  try {
    answer = JSON.parse(output)
  } catch {
    // What it has printed may be half a token.
    throw wrong('it prints no JSON')
  }
  if (textOf(answer, 'kind') !== 'ExecCredential') throw wrong('it prints no ExecCredential')
  const [version, wanted] = [textOf(answer, 'apiVersion'), textOf(plugin, 'apiVersion')]
  if (version !== wanted) throw wrong(`it answers in ${version}, and the kubeconfig wants ${wanted}`)
  const [token, certificate, key] = ['token', 'clientCertificateData', 'clientKeyData'].map(
    (name) => textOf(answer, 'status', name) || undefined
  )
  if ((certificate === undefined) !== (key === undefined)) throw wrong('it gives a certificate or a key, and not both')
  if (token === undefined && certificate === undefined) throw wrong('it gives neither token nor certificate')
  const until = textOf(answer, 'status', 'expirationTimestamp')
  const expires = until === undefined ? Infinity : Date.parse(until)
  if (Number.isNaN(expires)) throw wrong('what it says of its end is no time')
  return { token, certificate, key, expires }
}

function outputOf(user: User, plugin: unknown, command: string): Promise<string> {
  const args = listOf(plugin, 'args').map(String)
  const own = Object.fromEntries(
    listOf(plugin, 'env').map((each) => [textOf(each, 'name') ?? '', textOf(each, 'value') ?? ''])
  )
  const options = {
    env: childEnvironment(own),
    timeout: PROGRAM_MS,
    killSignal: 'SIGKILL',
    maxBuffer: OUTPUT_BYTES
  } as const
  return new Promise((resolve, reject) => {
    const child = execFile(command, args, options, (error, stdout, stderr) => {
      if (error === null) resolve(stdout)
      else reject(programFailed(user, plugin, command, error, stderr))
    })
    child.stdin?.on('error', () => undefined)
    child.stdin?.end()
  })
}

type ExecError = Error & { code?: string | number | null; killed?: boolean }

function programFailed(user: User, plugin: unknown, command: string, error: ExecError, stderr: string) {
  const { code } = error
  if (isExhausted(error)) {
    return new DeltamapperError(
      'DM_SYSTEM_REFUSED',
      `${command} could not be started (${code})`,
      systemRemedy(error) ?? 'ask again',
      { cause: error }
    )
  }
  if (code === 'ENOENT') {
    const hint = textOf(plugin, 'installHint')?.replaceAll(/\s+/g, ' ').trim()
    const place = command.includes('/') ? 'there' : 'in a folder of PATH'
    return failed(user, command, `there is no such program ${place}`, hint || `install ${command}`)
  }
  const said = stderr.trim().slice(-500).replaceAll(/\s+/g, ' ')
  const what =
    code === 'EACCES'
      ? 'this user may not run it'
      : error.killed
        ? `it was not done after ${PROGRAM_MS / 1000} seconds`
        : `it ended with ${typeof code === 'number' ? `status ${code}` : (code ?? 'a signal')}`
  return failed(
    user,
    command,
    said === '' ? what : `${what}: ${said}`,
    `run ${command} by hand, and do what it asks for`
  )
}

function failed(user: User, command: string, what: string, remedy: string): DeltamapperError {
  return new DeltamapperError(
    'DM_ACCESS_DENIED',
    `the credentials of the kubeconfig's user ${user.name} cannot be had from ${command}: ${what}`,
    remedy
  )
}
