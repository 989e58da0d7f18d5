/**
 * Addresses on the command line.
 */
import { parseAddress } from '../grpc/address.ts'
import { DeltamapperError } from '../errors.ts'
import { UsageError } from './failure.ts'

/** Where an agent listens by default. */
export const DEFAULT_ENDPOINT = 'unix:///run/deltamapper/agent.sock'
export const ENDPOINT_VARIABLE = 'DELTAMAPPER_ENDPOINT'

/** The endpoint to ask: what the option says, else the environment, else the default. @throws UsageError */
export function endpointAddress(option: string | undefined): string {
  const variable = process.env[ENDPOINT_VARIABLE]
  if (option !== undefined || !variable) return address(option ?? DEFAULT_ENDPOINT)
  return address(variable, `correct the environment variable ${ENDPOINT_VARIABLE}: `)
}

/** An address in its full form. @throws UsageError for anything that is none */
export function address(text: string, remedyPrefix = ''): string {
  try {
    return parseAddress(text).text
  } catch (error) {
    if (!(error instanceof DeltamapperError)) throw error
    throw new UsageError(error.message, remedyPrefix + error.remedy)
  }
}
