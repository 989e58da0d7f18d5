/** Addresses on the command line, and the certificates for them. */
import { type Command, Option } from 'commander'
import { parseAddress, parseConnectAddress } from '../../grpc/address.ts'
import type { ClientTls } from '../../grpc/client.ts'
import { DeltamapperError } from '../../errors.ts'
import { UsageError } from './failure.ts'

/** The default address of an agent. */
export const DEFAULT_ENDPOINT = 'unix:///run/deltamapper/agent.sock'
export const ENDPOINT_VARIABLE = 'DELTAMAPPER_ENDPOINT'

/** The endpoint to ask: from the option, else the environment, else the default. @throws UsageError */
export function endpointAddress(option: string | undefined, { tls = false } = {}): string {
  const parse = (text: string) => {
    const parsed = parseConnectAddress(text, { tls })
    if (!tls || parsed.kind === 'tcp') return parsed
    throw new UsageError(
      `${parsed.text} is a unix socket, where nothing speaks TLS`,
      'leave out the --tls options, or name a tcp:// endpoint'
    )
  }
  const variable = process.env[ENDPOINT_VARIABLE]
  if (option !== undefined || !variable) return address(option ?? DEFAULT_ENDPOINT, parse)
  return address(variable, parse, `correct the environment variable ${ENDPOINT_VARIABLE}: `)
}

/** Mutual TLS with a tcp:// endpoint; all of them or none. */
export interface TlsOptions {
  tlsCa?: string
  tlsCert?: string
  tlsKey?: string
  tlsServerName?: string
}

/** Adds them to a command with --endpoint. */
export function addTlsOptions(command: Command): Command {
  const options = [
    ['--tls-ca <file>', 'for a tcp:// endpoint: the authorities that its certificate has to come from (PEM)'],
    ['--tls-cert <file>', 'our certificate, with the name that the endpoint lets in (PEM)'],
    ['--tls-key <file>', 'its key (PEM)'],
    ['--tls-server-name <name>', "the DNS name that the endpoint's certificate has to carry"]
  ]
  for (const [flags, description] of options) {
    command.addOption(new Option(flags, description).conflicts(['metadata', 'xml']))
  }
  return command
}

/** Reads the files. Undefined if none is named. @throws UsageError, DM_CONFIG_INVALID */
export async function endpointTls({
  tlsCa,
  tlsCert,
  tlsKey,
  tlsServerName
}: TlsOptions): Promise<ClientTls | undefined> {
  const named = { '--tls-ca': tlsCa, '--tls-cert': tlsCert, '--tls-key': tlsKey, '--tls-server-name': tlsServerName }
  const missing = Object.entries(named).flatMap(([option, value]) => (value === undefined ? [option] : []))
  if (missing.length === Object.keys(named).length) return undefined
  if (tlsCa === undefined || tlsCert === undefined || tlsKey === undefined || tlsServerName === undefined) {
    throw new UsageError(`mutual TLS also needs ${missing.join(', ')}`, 'give all four of the --tls options')
  }
  const { readTlsMaterial } = await import('../../grpc/tls.ts')
  const material = await readTlsMaterial({ ca: tlsCa, certificate: tlsCert, key: tlsKey })
  return { material, serverName: tlsServerName }
}

/** An address to listen on, in its full form; the configuration decides whether it may be used. @throws UsageError */
export function listenAddress(text: string): string {
  return address(text, parseAddress)
}

function address(text: string, parse: (text: string) => { text: string }, remedyPrefix = ''): string {
  try {
    return parse(text).text
  } catch (error) {
    if (!(error instanceof DeltamapperError)) throw error
    throw new UsageError(error.message, remedyPrefix + error.remedy)
  }
}
