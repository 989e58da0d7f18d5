/** The agents' addresses: one agent on each node. */

export interface Agents {
  /**
   * The nodes that have an agent, or had one recently: all of them must be asked if nothing names the node of a
   * snapshot.
   */
  nodes(): readonly string[]
  /** Where a node's agent is now; undefined while there is none. */
  address(node: string): string | undefined
  /** The same; without an address, waits a short while for one: pods are replaced. */
  awaited(node: string, signal: AbortSignal): Promise<string | undefined>
}

/** Agents at fixed addresses from the configuration. */
export function fixedAgents(addresses: ReadonlyMap<string, string>): Agents {
  return {
    nodes: () => [...addresses.keys()],
    address: (node) => addresses.get(node),
    awaited: async (node) => addresses.get(node)
  }
}
