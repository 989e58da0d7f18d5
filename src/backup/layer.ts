/** What qemu-img says of one file of a chain, by itself: nothing behind it is opened. */
import { z } from 'zod'
import type { Chain } from './chain.ts'
import { DeltamapperError } from '../errors.ts'

const info = z.object({
  'virtual-size': z.number(),
  format: z.literal('qcow2'),
  'backing-filename': z.string().optional(),
  'cluster-size': z.number()
})

export interface Layer {
  /** Of the volume, in bytes. */
  readonly sizeBytes: number
  /** As it is in the file. */
  readonly backing: string | undefined
}

/** @throws DM_CHAIN_SWAPPED where it is no qcow2 file; what runTool throws */
export async function readLayer(chain: Chain, name: string): Promise<Layer> {
  const { stdout } = await chain.run('qemu-img', ['info', '--output=json', alone(name)]).catch((error: unknown) => {
    if (error instanceof DeltamapperError && error.code === 'DM_TOOL_FAILED') throw swapped(chain, name, error.message)
    throw error
  })
  const parsed = info.safeParse(JSON.parse(stdout))
  if (!parsed.success) throw swapped(chain, name, 'it is no qcow2 file')
  return { sizeBytes: parsed.data['virtual-size'], backing: parsed.data['backing-filename'] }
}

/**
 * Tells of each range that the file itself has, bytes `[begin, end)`. Reads its tables only.
 *
 * @throws what runTool throws
 */
export async function forEachStored(
  chain: Chain,
  name: string,
  use: (begin: number, end: number) => void
): Promise<void> {
  await chain.run('qemu-img', ['map', '--output=json', alone(name)], {
    // One range a line.
    onLine: (line) => {
      const [, start, length] = /"start": ?(\d+), "length": ?(\d+)/.exec(line) ?? []
      if (start !== undefined && !line.includes('"present": false')) use(Number(start), Number(start) + Number(length))
    }
  })
}

export function swapped(chain: Chain, name: string, what: string): DeltamapperError {
  return new DeltamapperError(
    'DM_CHAIN_SWAPPED',
    `${chain.path(name)} is not the file that the backup wrote: ${what}`,
    `put that one back; or move ${chain.folder} away, and take a full backup`
  )
}

/** As qemu-img takes it: this format, and no backing file. */
function alone(name: string): string {
  return `json:${JSON.stringify({ driver: 'qcow2', backing: null, file: { driver: 'file', filename: name } })}`
}
