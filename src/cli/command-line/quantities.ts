/**
 * Numbers as a person reads them.
 */
const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB']

/** A byte count as `64 KiB` or, if that is not exact, with one decimal place: `1.5 MiB`. */
export function humanSize(bytes: number): string {
  let value = bytes
  let unit = 0
  // From 1023.95 on, one decimal place would show as 1024.0.
  while (value >= 1023.95 && unit < units.length - 1) {
    value /= 1024
    unit++
  }
  return `${Number.isInteger(value) ? value : value.toFixed(1)} ${units[unit]}`
}

/** A byte count in the largest unit that divides it: `1280 MiB`. */
export function exactSize(bytes: number): string {
  let value = bytes
  let unit = 0
  while (value > 0 && value % 1024 === 0 && unit < units.length - 1) {
    value /= 1024
    unit++
  }
  return `${value} ${units[unit]}`
}

/** A part of a whole in percent. Only nothing is 0 %, and only everything is 100 %. */
export function percentage(part: number, whole: number): string {
  if (part === 0) return '0 %'
  if (part === whole) return '100 %'
  const percent = (100 * part) / whole
  if (percent < 0.01) return '<0.01 %'
  const text = percent.toFixed(percent < 10 ? 2 : 1)
  return text === '100.0' ? '>99.9 %' : `${text} %`
}

/** `1 extent`, `2 extents`. */
export function counted(count: number | bigint, noun: string): string {
  return `${count} ${noun}${count == 1 ? '' : 's'}`
}
