/**
 * On which node a snapshot is: by what its handle says, else by asking all agents.
 *
 * A wrong node would give a wrong answer where two nodes use the same names, as volume groups do. So asking counts only when every agent has
 * said yes or no, and one of them yes.
 */
import { DeltamapperError } from '../errors.ts'
import type { CallContext } from '../grpc/call-context.ts'
import type { Place, SnapshotLocator } from '../grpc/router.ts'
import type { ReadHandle } from './handle-patterns.ts'

export interface LocatorSources {
  /** What a handle says by itself. */
  readonly read: (snapshotId: string) => ReadHandle
  /** Node → its agent's address. */
  readonly nodes: ReadonlyMap<string, string>
  /** Whether the agent there has the snapshot; undefined when it does not say. */
  readonly ask: (place: Place, signal: AbortSignal, call?: CallContext) => Promise<boolean | undefined>
}

export class Locator implements SnapshotLocator {
  readonly #sources: LocatorSources

  constructor(sources: LocatorSources) {
    this.#sources = sources
  }

  /** @throws DM_NODE_UNKNOWN, DM_SNAPSHOT_NOT_FOUND, DM_NODE_AMBIGUOUS, DM_AGENT_UNREACHABLE */
  async target(snapshotId: string, signal: AbortSignal, call?: CallContext): Promise<Place> {
    const { node, handle } = this.#sources.read(snapshotId)
    if (node !== undefined) return this.#known(node, handle)
    const { having, silent } = await this.#askAll(handle, signal, call)
    if (having.length > 1) {
      throw new DeltamapperError(
        'DM_NODE_AMBIGUOUS',
        `${names(having)} all have a snapshot ${printable(handle)}`,
        'give the router a pattern that tells the node'
      )
    }
    // The one that does not say may have it, too.
    if (silent.length > 0) {
      throw new DeltamapperError(
        'DM_AGENT_UNREACHABLE',
        `nothing says on which node ${printable(handle)} is, and not all agents do: ${names(silent)} did not answer`,
        'see whether they run; a pattern that tells the node makes it unnecessary to ask'
      )
    }
    const [place] = having
    if (place === undefined) {
      throw new DeltamapperError(
        'DM_SNAPSHOT_NOT_FOUND',
        `no node has a snapshot ${printable(handle)}`,
        'check the handle, and the patterns of the router'
      )
    }
    return place
  }

  /** @throws as `target`, and DM_NODES_DIFFER */
  async pair(
    baseSnapshotId: string,
    targetSnapshotId: string,
    signal: AbortSignal,
    call?: CallContext
  ): Promise<{ target: Place; baseHandle: string }> {
    const target = await this.target(targetSnapshotId, signal, call)
    const base = this.#sources.read(baseSnapshotId)
    if (base.node !== undefined) {
      if (base.node !== target.node) throw nodesDiffer(base.node, target.node)
    } else {
      // It is the target's node that counts. What is not there may have been removed, which its agent knows better.
      const { having } = await this.#askAll(base.handle, signal, call)
      if (having.length > 0 && !having.some(({ node }) => node === target.node)) {
        throw nodesDiffer(having[0].node, target.node)
      }
    }
    return { target, baseHandle: base.handle }
  }

  #known(node: string, handle: string): Place {
    const address = this.#sources.nodes.get(node)
    if (address !== undefined) return { node, address, handle }
    throw new DeltamapperError(
      'DM_NODE_UNKNOWN',
      `no agent is known for the node ${printable(node)}`,
      'add it to the nodes of the router, or correct the pattern'
    )
  }

  async #askAll(
    handle: string,
    signal: AbortSignal,
    call: CallContext | undefined
  ): Promise<{ having: Place[]; silent: Place[] }> {
    const places = [...this.#sources.nodes].map(([node, address]) => ({ node, address, handle }))
    const answers = await Promise.all(places.map((place) => this.#sources.ask(place, signal, call)))
    return {
      having: places.filter((_place, i) => answers[i] === true),
      silent: places.filter((_place, i) => answers[i] === undefined)
    }
  }
}

function nodesDiffer(base: string, target: string): DeltamapperError {
  return new DeltamapperError(
    'DM_NODES_DIFFER',
    `the base is on node ${printable(base)}, the target on ${printable(target)}`,
    'compare snapshots of one volume'
  )
}

function names(places: readonly Place[]): string {
  return places.map(({ node }) => node).join(', ')
}

function printable(text: string): string {
  return JSON.stringify(text).replaceAll(/[^ -~]/g, '?')
}
