/** A time for people. */

/** Coordinated Universal Time, to the second. `ms`: since 1970. */
export function moment(ms: number): string {
  return `${new Date(ms).toISOString().slice(0, 19).replace('T', ' ')}Z`
}
