/**
 * B-trees in metadata blocks, changed as the kernel's are (drivers/md/persistent-data/dm-btree.c, dm-btree-remove.c): from the root down,
 * each node shadowed before the next, full nodes split on the way, nodes that become less than a third full put together with a sibling.
 */
import { type BTreeNode, type NodeValue, roomFor } from './blocks.ts'
import type { MetadataStore } from './store.ts'

/** What a tree's leaves hold, and what is to be counted when values are copied and dropped (struct dm_btree_value_type). */
export interface TreeType {
  readonly valueBytes: BTreeNode['valueBytes']
  increment(store: MetadataStore, value: NodeValue): void
  decrement(store: MetadataStore, value: NodeValue): void
}

export const noReferences = { increment: () => undefined, decrement: () => undefined }

export function emptyTree(store: MetadataStore, { valueBytes }: TreeType): number {
  return store.allocate({ kind: 'node', leaf: true, valueBytes, keys: [], values: [] })
}

export function lookup(store: MetadataStore, root: number, key: number): NodeValue | undefined {
  for (let block = root; ;) {
    const { leaf, keys, values } = store.node(block)
    const i = lastAtMost(keys, key)
    if (i < 0) return undefined
    if (leaf) return keys[i] === key ? values[i] : undefined
    block = values[i] as number
  }
}

export function* entriesOf(store: MetadataStore, root: number): Generator<[key: number, value: NodeValue]> {
  const { leaf, keys, values } = store.node(root)
  for (let i = 0; i < keys.length; i++) {
    if (leaf) yield [keys[i], values[i]]
    else yield* entriesOf(store, values[i] as number)
  }
}

/** Puts a value in, in place of one that is there. @returns the new root */
export function insert(store: MetadataStore, root: number, key: number, value: NodeValue, type: TreeType): number {
  const newRoot = store.shadow(root, type)
  if (isFull(store.node(newRoot))) splitRoot(store, newRoot, type)
  for (let block = newRoot; ;) {
    const node = store.node(block)
    let i = lastAtMost(node.keys, key)
    if (node.leaf) {
      if (i >= 0 && node.keys[i] === key) {
        type.decrement(store, node.values[i])
        node.values[i] = value
      } else {
        node.keys.splice(i + 1, 0, key)
        node.values.splice(i + 1, 0, value)
      }
      return newRoot
    }
    if (i < 0) node.keys[(i = 0)] = key
    let child = store.shadow(node.values[i] as number, type)
    node.values[i] = child
    if (isFull(store.node(child))) {
      splitChild(store, node, i)
      if (key >= node.keys[i + 1]) child = node.values[i + 1] as number
    }
    block = child
  }
}

/** Takes a key out, if it is there. @returns the new root */
export function remove(store: MetadataStore, root: number, key: number, type: TreeType): number {
  if (lookup(store, root, key) === undefined) return root
  const newRoot = store.shadow(root, type)
  removeBelow(store, newRoot, key, type)
  const node = store.node(newRoot)
  if (!node.leaf && node.keys.length === 1) {
    const only = node.values[0] as number
    Object.assign(node, store.node(only))
    store.release(only)
  }
  return newRoot
}

/** One user less of a tree; what nobody uses any more is given back (dm_btree_del). */
export function releaseTree(store: MetadataStore, root: number, type: TreeType): void {
  const { leaf, values } = store.node(root)
  if (!store.release(root)) return
  for (const value of values) {
    if (leaf) type.decrement(store, value)
    else releaseTree(store, value as number, type)
  }
}

/** Shadows the way to a key that is there, and hands out its leaf to change the value in, without counting anything of it. */
export function leafToChange(
  store: MetadataStore,
  root: number,
  key: number,
  type: TreeType
): { root: number; leaf: BTreeNode; index: number } {
  const newRoot = store.shadow(root, type)
  for (let node = store.node(newRoot); ;) {
    const index = lastAtMost(node.keys, key)
    if (node.leaf) return { root: newRoot, leaf: node, index }
    const child = store.shadow(node.values[index] as number, type)
    node.values[index] = child
    node = store.node(child)
  }
}

function removeBelow(store: MetadataStore, block: number, key: number, type: TreeType): void {
  const node = store.node(block)
  const i = lastAtMost(node.keys, key)
  if (node.leaf) {
    type.decrement(store, node.values[i])
    node.keys.splice(i, 1)
    node.values.splice(i, 1)
    return
  }
  const child = store.shadow(node.values[i] as number, type)
  node.values[i] = child
  removeBelow(store, child, key, type)
  const { keys, valueBytes } = store.node(child)
  if (keys.length < roomFor(valueBytes) / 3 && node.keys.length > 1) join(store, node, Math.max(i - 1, 0), type)
}

/** Puts two siblings together, or shares their entries out evenly (__rebalance2). */
function join(store: MetadataStore, parent: BTreeNode, i: number, type: TreeType): void {
  const [leftBlock, rightBlock] = [i, i + 1].map((at) => {
    const block = store.shadow(parent.values[at] as number, type)
    parent.values[at] = block
    return block
  })
  const [left, right] = [store.node(leftBlock), store.node(rightBlock)]
  const keys = [...left.keys, ...right.keys]
  const values = [...left.values, ...right.values]
  const third = roomFor(left.valueBytes) / 3
  if (keys.length < 2 * third + 1) {
    Object.assign(left, { keys, values })
    store.release(rightBlock)
    parent.keys.splice(i + 1, 1)
    parent.values.splice(i + 1, 1)
    return
  }
  const middle = keys.length >> 1
  Object.assign(left, { keys: keys.slice(0, middle), values: values.slice(0, middle) })
  Object.assign(right, { keys: keys.slice(middle), values: values.slice(middle) })
  parent.keys[i + 1] = right.keys[0]
}

/** The root keeps its block, and gets two children (btree_split_beneath). */
function splitRoot(store: MetadataStore, block: number, { valueBytes }: TreeType): void {
  const node = store.node(block)
  const middle = node.keys.length >> 1
  const half = (from: number, to: number) =>
    store.allocate({
      kind: 'node',
      leaf: node.leaf,
      valueBytes: node.leaf ? valueBytes : 8,
      keys: node.keys.slice(from, to),
      values: node.values.slice(from, to)
    })
  const keys = [node.keys[0], node.keys[middle]]
  const values = [half(0, middle), half(middle, node.keys.length)]
  Object.assign(node, { leaf: false, valueBytes: 8, keys, values })
}

function splitChild(store: MetadataStore, parent: BTreeNode, i: number): void {
  const left = store.node(parent.values[i] as number)
  const middle = left.keys.length >> 1
  const right = store.allocate({ ...left, keys: left.keys.splice(middle), values: left.values.splice(middle) })
  parent.keys.splice(i + 1, 0, store.node(right).keys[0])
  parent.values.splice(i + 1, 0, right)
}

function isFull({ keys, valueBytes }: BTreeNode): boolean {
  return keys.length >= roomFor(valueBytes)
}

function lastAtMost(keys: readonly number[], key: number): number {
  let [low, high] = [-1, keys.length]
  while (high - low > 1) {
    const middle = (low + high) >> 1
    if (keys[middle] <= key) low = middle
    else high = middle
  }
  return low
}
