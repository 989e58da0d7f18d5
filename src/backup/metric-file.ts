/**
 * Figures of all chains in a folder, for node_exporter's textfile collector (--collector.textfile.directory): written
 * whole, by a rename.
 */
import { open, rename } from 'node:fs/promises'
import { chainsBelow, readPoints } from './chain.ts'

/** Gauges with the label `volume`: name and help. */
export const families = [
  ['deltamapper_backup_newest_point_timestamp_seconds', 'When the snapshot of the newest point was taken.'],
  ['deltamapper_backup_points', 'Points that can be restored.'],
  ['deltamapper_backup_size_bytes', 'Size of the volume at the newest point.'],
  ['deltamapper_backup_stored_bytes', 'What the files of all points take.'],
  ['deltamapper_backup_increments', 'Increments since the newest full backup.']
] as const

/** @throws what reading the chains and writing the file throw */
export async function writeMetricFile(root: string, path: string): Promise<void> {
  const text = await metrics(root)
  // The collector reads *.prom only.
  const part = `${path}.part`
  const file = await open(part, 'w', 0o644)
  try {
    await file.writeFile(text)
    await file.sync()
  } finally {
    await file.close()
  }
  await rename(part, path)
}

/** In the text format of Prometheus. */
export async function metrics(root: string): Promise<string> {
  const samples = new Map<string, string[]>(families.map(([name]) => [name, []]))
  for (const volume of await chainsBelow(root)) {
    const points = await readPoints(root, volume)
    const newest = points.at(-1)
    const values = [
      newest === undefined ? undefined : Date.parse(newest.created) / 1000,
      points.length,
      newest?.size_bytes,
      points.reduce((sum, each) => sum + each.stored_bytes, 0),
      points.length === 0 ? undefined : points.length - 1 - points.findLastIndex(({ kind }) => kind === 'full')
    ]
    for (const [i, [name]] of families.entries()) {
      if (values[i] !== undefined) samples.get(name)?.push(`${name}{volume="${volume}"} ${values[i]}`)
    }
  }
  const text = families.map(([name, help]) =>
    [`# HELP ${name} ${help}`, `# TYPE ${name} gauge`, ...(samples.get(name) ?? [])].join('\n')
  )
  return `${text.join('\n')}\n`
}
