/**
 * What a snapshot handle tells by itself, read by configured patterns: its node, and the snapshot's name for the agent
 * there.
 *
 * A pattern is a regular expression for the whole handle. Its named groups `vg` and `lv` make the agent's handle,
 * VG/LV. With `lv` alone, any volume group may have it. Without them, the agent gets the handle as it is. The group
 * `node`, or a fixed node beside the pattern, names the node; without either, the agents are asked. The first pattern
 * that matches counts.
 */
import { ANY_SOURCE, isHandleName } from '../../handle.ts'

export interface HandlePattern {
  readonly pattern: RegExp
  readonly node?: string | undefined
}

export interface ReadHandle {
  /** Undefined if nothing tells it. */
  readonly node: string | undefined
  readonly handle: string
}

/** @throws SyntaxError for a malformed regular expression, or one whose groups make no sense */
export function handlePattern(source: string, node?: string): HandlePattern {
  // Compiled alone first: a pattern that closes a group that it did not open would escape from between the anchors.
  void new RegExp(source, 'su')
  // `s`: a dot is any character, so that no handle escapes a pattern by a line break.
  const pattern = new RegExp(`^(?:${source})$`, 'su')
  const groups = [...source.matchAll(/\(\?<([A-Za-z_]\w*)>/g)].map(([, name]) => name)
  const unknown = groups.find((name) => !['node', 'vg', 'lv'].includes(name))
  if (unknown !== undefined) throw new SyntaxError(`the group ${unknown} is none of node, vg and lv`)
  if (groups.includes('vg') && !groups.includes('lv')) throw new SyntaxError('it has the group vg, and not lv')
  if (node !== undefined && groups.includes('node'))
    throw new SyntaxError('it has the group node and a fixed node as well')
  return { pattern, node }
}

export function readHandle(handle: string, patterns: readonly HandlePattern[]): ReadHandle {
  for (const { pattern, node } of patterns) {
    const match = pattern.exec(handle)
    if (match === null) continue
    const { vg, lv, node: named } = match.groups ?? {}
    // Parts that no agent would take, such as a second slash, would make another handle than intended.
    if (lv !== undefined && !(isHandleName(lv) && (vg === undefined || isHandleName(vg)))) continue
    return { node: node ?? named, handle: lv === undefined ? handle : `${vg ?? ANY_SOURCE}/${lv}` }
  }
  return { node: undefined, handle }
}
