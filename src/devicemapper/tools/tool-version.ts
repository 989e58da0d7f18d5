/**
 * Which versions of thin-provisioning-tools may be believed, and what is wrong with the others. Those answer wrongly
 * with exit status 0 and well-formed XML; only their version tells.
 *
 * (0.x is written in C++ and ends with 0.9.0; 1.x is Rust. Sources: their release notes, issues #25, #39 and #109, and
 * trying them.)
 */

/** As `--version` prints it. */
export interface ToolVersion {
  readonly major: number
  readonly minor: number
  readonly patch: number
}

interface Fault {
  /** First and last version that has it; left out at either end: all before, all after. */
  readonly from?: string
  readonly to?: string
  readonly what: string
}

/**
 * What makes an answer wrong or impossible. (The wrong data addresses of --verbose, 1.0.0 to 1.3.3, do not: nobody
 * reads them.)
 */
const faults: readonly Fault[] = [
  { to: '0.7.5', what: 'leaves out changed blocks (the last run of a device, and others)' },
  { from: '0.9.1', to: '0.999.0', what: 'is not a version that has been tried' },
  { from: '1.0.0', to: '1.0.4', what: 'reports changed blocks as the same' },
  { from: '1.0.5', to: '1.0.5', what: 'does not take the option --thin2' }
]

/** The parsed output of `--version`; undefined if it has another form. */
export function parseToolVersion(output: string): ToolVersion | undefined {
  const [, major, minor, patch] = /^(?:\w+ )?(\d{1,4})\.(\d{1,4})\.(\d{1,4})\s*$/.exec(output) ?? []
  return major === undefined ? undefined : { major: Number(major), minor: Number(minor), patch: Number(patch) }
}

/** What is wrong with a version; undefined when nothing is known against it. */
export function faultOf(version: ToolVersion): string | undefined {
  const at = orderOf(version)
  return faults.find(({ from, to }) => at >= bound(from, -Infinity) && at <= bound(to, Infinity))?.what
}

export function describeVersion({ major, minor, patch }: ToolVersion): string {
  return `${major}.${minor}.${patch}`
}

function bound(text: string | undefined, otherwise: number): number {
  const version = text === undefined ? undefined : parseToolVersion(text)
  return version === undefined ? otherwise : orderOf(version)
}

/** A number that orders versions: no part has more than four digits. */
function orderOf({ major, minor, patch }: ToolVersion): number {
  return (major * 10_000 + minor) * 10_000 + patch
}
