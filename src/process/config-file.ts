/** A configuration file of agent or router: YAML or JSON, a mapping of fields. Errors name the file and the field. */
import { parse } from 'yaml'
import { z } from 'zod'
import { DeltamapperError } from '../errors.ts'
import { parseListenAddress } from '../grpc/address.ts'
import { checkDriverName } from '../grpc/identity.ts'
import { groupIdOf } from '../grpc/unix-socket.ts'
import { readOrdinaryFile } from '../ordinary-file.ts'
import { systemRemedy } from '../system-errors.ts'

/** How a unix socket is made, for agent and router alike. */
export const socketFields = {
  /** Permissions, as in chmod(1), octal. */
  socketMode: z
    .string()
    .regex(/^0?[0-7]{3}$/, 'is no file mode such as "0660"')
    .default('0600')
    .transform((mode) => parseInt(mode, 8)),
  /** Group, by name or number. */
  socketGroup: z.union([z.string().min(1), z.int().min(0)]).optional()
}

/** TLS files: PEM, read again when they change. */
export const tlsFields = { certificate: z.string().min(1), key: z.string().min(1), ca: z.string().min(1) }

export interface ConfigFile {
  /** Unchecked. */
  readonly fields: Readonly<Record<string, unknown>>
  /** What they were read from. */
  readonly text: string
}

/** Nothing without a file. @throws DM_CONFIG_INVALID */
export async function readConfigFile(file: string | undefined): Promise<ConfigFile> {
  if (file === undefined) return { fields: {}, text: '' }
  let text: string
  let content: unknown
  try {
    text = (await readOrdinaryFile(file)).toString('utf8')
    content = parse(text) ?? {}
  } catch (cause) {
    throw invalidConfig(file, (cause as Error).message, cause)
  }
  if (!isMapping(content)) throw invalidConfig(file, 'it is no mapping of fields')
  return { fields: content as Record<string, unknown>, text }
}

/**
 * Checks what otherwise only the server would find out, after catalog and connections are open.
 *
 * @throws DM_CONFIG_INVALID
 */
export function checkServing({
  listen,
  tls,
  allowLoopbackTcp,
  socketGroup,
  driverName
}: {
  readonly listen: readonly string[]
  readonly tls?: unknown
  readonly allowLoopbackTcp: boolean
  readonly socketGroup?: string | number | undefined
  readonly driverName: string
}): void {
  for (const each of listen) parseListenAddress(each, { tls: tls !== undefined, allowLoopbackTcp })
  if (socketGroup !== undefined) groupIdOf(socketGroup)
  checkDriverName(driverName)
}

export function isMapping(content: unknown): boolean {
  return typeof content === 'object' && content !== null && !Array.isArray(content)
}

/** @param file undefined for the command line */
export function invalidConfig(file: string | undefined, what: string, cause?: unknown): DeltamapperError {
  return new DeltamapperError(
    'DM_CONFIG_INVALID',
    `the configuration in ${file ?? 'the command line'} cannot be used: ${what.replaceAll(/\s+/g, ' ').trim()}`,
    systemRemedy(cause) ?? 'docs/reference.md lists the fields',
    { cause }
  )
}

/** The error of a field's check, as an issue of the field. */
export function valid<T>(check: (value: T) => unknown): (value: T, context: z.RefinementCtx) => void {
  return (value, context) => {
    try {
      check(value)
    } catch (error) {
      context.addIssue({ code: 'custom', message: (error as Error).message })
    }
  }
}
