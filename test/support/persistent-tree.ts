/**
 * A copy-on-write B-tree in memory, shaped as dm-thin's trees are: the model from which metadata images are written.
 *
 * Like the kernel's, its internal keys are lower bounds that may be smaller than the child's first key, a snapshot is the same root
 * under another name, and a change copies only the path from the root to the leaf. How many entries a node may hold is free, so a
 * four-level tree needs no million entries.
 */
import type { Random } from './random.ts'

export interface TreeNode<V> {
  readonly leaf: boolean
  /** Strictly ascending; as many as `values` (leaf) or `children` (internal). */
  readonly keys: number[]
  readonly values: V[]
  readonly children: TreeNode<V>[]
  /** What `max_entries` says in the block: a multiple of three. */
  readonly maxEntries: number
  /** Only the tree that holds this token may change the node in place. */
  readonly owner: symbol
}

export interface TreeShape {
  /** Entries that a leaf can hold: a multiple of three, at least 6. */
  readonly leafEntries: number
  /** Entries that an internal node can hold, likewise. */
  readonly internalEntries: number
  /** Where a full node is cut: in the middle, or anywhere that leaves both halves a third full. */
  readonly split: 'middle' | 'anywhere'
  /** Nodes may become emptier than a third, which a kernel avoids and Debian's tools refuse. */
  readonly underfull?: boolean
}

export class PersistentTree<V> {
  readonly shape: TreeShape
  #root: TreeNode<V>
  #token = Symbol('owner')
  readonly #random: Random

  constructor(shape: TreeShape, random: Random, root?: TreeNode<V>) {
    for (const entries of [shape.leafEntries, shape.internalEntries]) {
      if (entries < 6 || entries % 3 !== 0) throw new RangeError(`a node cannot be made to hold ${entries} entries`)
    }
    this.shape = shape
    this.#random = random
    this.#root = root ?? this.#node(true, [], [], [])
  }

  get root(): TreeNode<V> {
    return this.#root
  }

  /** Levels of nodes: 1 for a tree that is one leaf. */
  get height(): number {
    let height = 1
    for (let node = this.#root; !node.leaf; node = firstChild(node)) height++
    return height
  }

  /** Both trees go on from the same root; neither sees what the other changes. */
  snapshot(): PersistentTree<V> {
    this.#token = Symbol('owner')
    return new PersistentTree(this.shape, this.#random.fork(), this.#root)
  }

  get(key: number): V | undefined {
    let node = this.#root
    for (;;) {
      const index = lastAtMost(node.keys, key)
      if (index < 0) return undefined
      if (node.leaf) return node.keys[index] === key ? node.values[index] : undefined
      node = node.children[index]
    }
  }

  set(key: number, value: V): void {
    const parts = this.#insert(this.#root, key, value)
    this.#root = this.#join(parts)
  }

  /** Whether the key was there. */
  delete(key: number): boolean {
    if (this.get(key) === undefined) return false
    this.#root = this.#remove(this.#root, key)
    // An internal root with one child is replaced by that child.
    while (!this.#root.leaf && this.#root.children.length === 1) this.#root = firstChild(this.#root)
    if (!this.#root.leaf && this.#root.children.length === 0) this.#root = this.#node(true, [], [], [])
    return true
  }

  *entries(from = 0): Generator<[key: number, value: V]> {
    yield* entriesOf(this.#root, from)
  }

  /**
   * Replaces the whole tree. `leafFill` and `internalFill` say how many entries each next node gets; the last two of a level share what is
   * left, so that neither is emptier than a third.
   */
  load(entries: Iterable<readonly [key: number, value: V]>, leafFill: () => number, internalFill = leafFill): void {
    const keys: number[] = []
    const values: V[] = []
    for (const [key, value] of entries) {
      keys.push(key)
      values.push(value)
    }
    let level: TreeNode<V>[] = cut(keys.length, leafFill, this.shape.leafEntries).map(([start, end]) =>
      this.#node(true, keys.slice(start, end), values.slice(start, end), [])
    )
    while (level.length > 1) {
      const children = level
      level = cut(children.length, internalFill, this.shape.internalEntries).map(([start, end]) => {
        const own = children.slice(start, end)
        return this.#node(false, own.map(firstKey), [], own)
      })
    }
    this.#root = level[0] ?? this.#node(true, [], [], [])
  }

  /**
   * Lowers the keys of about half the children along the path to `key`, as far as the rules allow: above all that the left neighbour
   * holds. Content stays the same, and so do the children; only their lower bounds differ from those in other trees that share them.
   */
  loosenKeys(key: number): void {
    const loosen = (shared: TreeNode<V>): TreeNode<V> => {
      if (shared.leaf) return shared
      const node = this.#own(shared)
      for (let index = 1; index < node.keys.length; index++) {
        if (!this.#random.chance(0.5)) continue
        const lowest = highestKey(node.children[index - 1]) + 1
        node.keys[index] = this.#random.integer(lowest, node.keys[index])
      }
      const at = Math.max(lastAtMost(node.keys, key), 0)
      node.children[at] = loosen(node.children[at])
      return node
    }
    this.#root = loosen(this.#root)
  }

  #node(leaf: boolean, keys: number[], values: V[], children: TreeNode<V>[]): TreeNode<V> {
    const maxEntries = leaf ? this.shape.leafEntries : this.shape.internalEntries
    return { leaf, keys, values, children, maxEntries, owner: this.#token }
  }

  /** The node itself if it is this tree's alone, else a copy that is. */
  #own(node: TreeNode<V>): TreeNode<V> {
    if (node.owner === this.#token) return node
    return this.#node(node.leaf, node.keys.slice(), node.values.slice(), node.children.slice())
  }

  #join(parts: TreeNode<V>[]): TreeNode<V> {
    return parts.length === 1 ? parts[0] : this.#node(false, parts.map(firstKey), [], parts)
  }

  #insert(shared: TreeNode<V>, key: number, value: V): TreeNode<V>[] {
    const node = this.#own(shared)
    const index = lastAtMost(node.keys, key)
    if (node.leaf) {
      if (index >= 0 && node.keys[index] === key) {
        node.values[index] = value
        return [node]
      }
      node.keys.splice(index + 1, 0, key)
      node.values.splice(index + 1, 0, value)
    } else {
      const at = Math.max(index, 0)
      if (index < 0) node.keys[0] = key
      const parts = this.#insert(node.children[at], key, value)
      node.children.splice(at, 1, ...parts)
      if (parts.length > 1) node.keys.splice(at + 1, 0, firstKey(parts[1]))
    }
    return node.keys.length > node.maxEntries ? this.#split(node) : [node]
  }

  #split(node: TreeNode<V>): TreeNode<V>[] {
    const count = node.keys.length
    const least = Math.ceil(node.maxEntries / 3)
    const at = this.shape.split === 'middle' ? count >> 1 : this.#random.integer(least, count - least)
    const right = this.#node(node.leaf, node.keys.splice(at), node.values.splice(at), node.children.splice(at))
    return [node, right]
  }

  #remove(shared: TreeNode<V>, key: number): TreeNode<V> {
    const node = this.#own(shared)
    const index = lastAtMost(node.keys, key)
    if (node.leaf) {
      node.keys.splice(index, 1)
      node.values.splice(index, 1)
      return node
    }
    const child = this.#remove(node.children[index], key)
    node.children[index] = child
    const enough = this.shape.underfull === true ? 1 : Math.ceil(child.maxEntries / 3)
    if (child.keys.length >= enough) return node
    if (child.keys.length === 0) {
      node.keys.splice(index, 1)
      node.children.splice(index, 1)
    } else if (node.children.length > 1) {
      this.#level(node, index === 0 ? 0 : index - 1)
    }
    return node
  }

  /** Makes one of two neighbouring children where they fit into one, else gives each half. */
  #level(parent: TreeNode<V>, index: number): void {
    const left = parent.children[index]
    const right = parent.children[index + 1]
    const keys = [...left.keys, ...right.keys]
    const values = [...left.values, ...right.values]
    const children = [...left.children, ...right.children]
    if (keys.length <= left.maxEntries) {
      parent.children.splice(index, 2, this.#node(left.leaf, keys, values, children))
      parent.keys.splice(index + 1, 1)
      return
    }
    const at = keys.length >> 1
    const newRight = this.#node(left.leaf, keys.splice(at), values.splice(at), children.splice(at))
    parent.children.splice(index, 2, this.#node(left.leaf, keys, values, children), newRight)
    parent.keys[index + 1] = firstKey(newRight)
  }
}

/** Every node reachable from `root`, each once, parents before children. */
export function* nodesOf<V>(root: TreeNode<V>, seen = new Set<TreeNode<V>>()): Generator<TreeNode<V>> {
  if (seen.has(root)) return
  seen.add(root)
  yield root
  for (const child of root.children) yield* nodesOf(child, seen)
}

function* entriesOf<V>(node: TreeNode<V>, from: number): Generator<[number, V]> {
  for (let index = Math.max(lastAtMost(node.keys, from), 0); index < node.keys.length; index++) {
    if (!node.leaf) yield* entriesOf(node.children[index], from)
    else if (node.keys[index] >= from) yield [node.keys[index], node.values[index]]
  }
}

/** Index of the last key that is `<= key`, or -1. */
function lastAtMost(keys: readonly number[], key: number): number {
  let low = -1
  let high = keys.length
  while (high - low > 1) {
    const middle = (low + high) >> 1
    if (keys[middle] <= key) low = middle
    else high = middle
  }
  return low
}

function firstKey<V>(node: TreeNode<V>): number {
  return node.keys[0]
}

function firstChild<V>(node: TreeNode<V>): TreeNode<V> {
  return node.children[0]
}

function highestKey<V>(node: TreeNode<V>): number {
  return node.leaf ? (node.keys.at(-1) as number) : highestKey(node.children.at(-1) as TreeNode<V>)
}

/** [start, end) of each node's entries. */
function cut(count: number, fill: () => number, maxEntries: number): [number, number][] {
  const least = Math.ceil(maxEntries / 3)
  const pieces: [number, number][] = []
  let start = 0
  while (start < count) {
    let length = Math.min(Math.max(fill(), least), maxEntries, count - start)
    const rest = count - start - length
    if (rest > 0 && rest < least) length = count - start <= maxEntries ? count - start : (count - start) >> 1
    pieces.push([start, start + length])
    start += length
  }
  return pieces
}
