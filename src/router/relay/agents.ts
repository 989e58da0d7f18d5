/**
 * Where the agents are: one on each node.
 */

export interface Agents {
  /** The nodes that have an agent, or had one a short while ago: those that have to be asked where nothing says the node of a snapshot. */
  nodes(): readonly string[]
  /** Where a node's agent is now; undefined while there is none. */
  address(node: string): string | undefined
  /** The same, and where there is none, what comes within a short while: pods are replaced. */
  awaited(node: string, signal: AbortSignal): Promise<string | undefined>
}

/** Agents that stay where the configuration says. */
export function fixedAgents(addresses: ReadonlyMap<string, string>): Agents {
  return {
    nodes: () => [...addresses.keys()],
    address: (node) => addresses.get(node),
    awaited: async (node) => addresses.get(node)
  }
}
