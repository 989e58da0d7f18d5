/**
 * Addresses on the command line.
 */
import { parseAddress, parseConnectAddress } from '../grpc/address.ts'
import { DeltamapperError } from '../errors.ts'
import { UsageError } from './failure.ts'

/** Where an agent listens by default. */
export const DEFAULT_ENDPOINT = 'unix:///run/deltamapper/agent.sock'
export const ENDPOINT_VARIABLE = 'DELTAMAPPER_ENDPOINT'

/** The endpoint to ask: what the option says, else the environment, else the default. @throws UsageError */
export function endpointAddress(option: string | undefined): string {
  const variable = process.env[ENDPOINT_VARIABLE]
  if (option !== undefined || !variable) return address(option ?? DEFAULT_ENDPOINT, parseConnectAddress)
  return address(variable, parseConnectAddress, `correct the environment variable ${ENDPOINT_VARIABLE}: `)
}

/** An address to listen on, in its full form; whether it may be listened on is the configuration's to say. @throws UsageError */
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
