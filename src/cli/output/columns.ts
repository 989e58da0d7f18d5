/** A small table as text: columns as wide as their content, two spaces apart. */
import { oneLine } from '../command-line/failure.ts'

/** A heading, and whether the column has numbers, which are right-aligned. */
export type Column = readonly [heading: string, align?: 'right']

/** Lines, each ended. The last column is not padded. */
export function columns(heads: readonly Column[], rows: readonly (readonly string[])[]): string {
  const lines = [heads.map(([heading]) => heading), ...rows.map((row) => row.map(oneLine))]
  const widths = heads.map((_, i) => Math.max(...lines.map((line) => line[i].length)))
  return lines
    .map((line) => {
      const cells = line.map((cell, i) => {
        if (heads[i][1] === 'right') return cell.padStart(widths[i])
        return i === heads.length - 1 ? cell : cell.padEnd(widths[i])
      })
      return `${cells.join('  ')}\n`
    })
    .join('')
}

/** `name   value` lines. */
export function facts(pairs: readonly (readonly [name: string, value: string])[]): string {
  const width = Math.max(...pairs.map(([name]) => name.length))
  return pairs.map(([name, value]) => `${name.padEnd(width)}  ${oneLine(value)}\n`).join('')
}
