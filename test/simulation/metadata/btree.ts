/**
 * B-trees in metadata blocks, changed as the kernel's are since Linux 5.14 (drivers/md/persistent-data/dm-btree.c, dm-btree-remove.c): from
 * the root down, each node shadowed before the next. Which nodes split, merge and share their entries out follows the kernel's rules,
 * so that as many blocks are in use (test/kernel/simulated-pools.test.ts).
 */
import { type BTreeNode, cloned, type NodeValue, roomFor } from './blocks.ts'
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

/** Puts a value in, in place of one that is there (btree_insert_raw). @returns the new root */
export function insert(store: MetadataStore, root: number, key: number, value: NodeValue, type: TreeType): number {
  const newRoot = store.shadow(root, type)
  let [block, parent, at] = [newRoot, undefined as BTreeNode | undefined, 0]
  for (;;) {
    if (!hasSpace(store.node(block), key)) {
      if (parent) block = rebalanceOrSplit(store, parent, at, key, type)
      else splitRoot(store, block, type)
    }
    const node = store.node(block)
    const i = lastAtMost(node.keys, key)
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
    if (i < 0) node.keys[0] = key
    ;[parent, at] = [node, Math.max(i, 0)]
    block = shadowChild(store, node, at, type)
  }
}

/** Takes a key out, if it is there (dm_btree_remove). @returns the new root */
export function remove(store: MetadataStore, root: number, key: number, type: TreeType): number {
  if (lookup(store, root, key) === undefined) return root
  return removeOne(store, root, key, key + 1, type).root
}

/** Takes out the keys of a range, one at a time (__remove_range, dm-thin-metadata.c). @returns the new root, and how many they were */
export function removeRange(
  store: MetadataStore,
  root: number,
  begin: number,
  end: number,
  type: TreeType
): { root: number; removed: number } {
  let removed = 0
  for (let from = nextKey(store, root, begin); from !== undefined && from < end; from = nextKey(store, root, from)) {
    // The last turn finds nothing, and has shadowed the way to where it looked.
    for (let isOver = false; !isOver;) {
      const one = removeOne(store, root, from, end, type)
      root = one.root
      if (one.removed === undefined) isOver = true
      else {
        removed++
        from = one.removed + 1
      }
    }
  }
  return { root, removed }
}

/** One user less of a tree; what nobody uses any more is given back, children first (dm_btree_del). */
export function releaseTree(store: MetadataStore, root: number, type: TreeType): void {
  const { leaf, values } = store.node(root)
  if (store.metadata.counts[root] === 1) {
    for (const value of values) {
      if (leaf) type.decrement(store, value)
      else releaseTree(store, value as number, type)
    }
  }
  store.release(root)
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

/** Takes out the first key of a range, if that is where the way down ends (remove_one). @returns which it was */
function removeOne(
  store: MetadataStore,
  root: number,
  from: number,
  end: number,
  type: TreeType
): { root: number; removed: number | undefined } {
  const newRoot = store.shadow(root, type)
  for (let node = store.node(newRoot); ;) {
    if (!node.leaf && !rebalanceChildren(store, node, from, type)) return { root: newRoot, removed: undefined }
    const i = Math.max(lastAtMost(node.keys, from), 0)
    if (!node.leaf) {
      node = store.node(shadowChild(store, node, i, type))
      continue
    }
    const key = node.keys.at(i)
    if (key === undefined || key < from || key >= end) return { root: newRoot, removed: undefined }
    type.decrement(store, node.values[i])
    node.keys.splice(i, 1)
    node.values.splice(i, 1)
    return { root: newRoot, removed: key }
  }
}

/** The lowest key from `from` on (dm_btree_lookup_next). */
function nextKey(store: MetadataStore, root: number, from: number): number | undefined {
  const { leaf, keys, values } = store.node(root)
  if (leaf) return keys.find((key) => key >= from)
  for (let i = Math.max(lastAtMost(keys, from), 0); i < keys.length; i++) {
    const found = nextKey(store, values[i] as number, from)
    if (found !== undefined) return found
  }
  return undefined
}

/** Before a step down, the child and its siblings are made about as full as each other. @returns false below the lowest key */
function rebalanceChildren(store: MetadataStore, node: BTreeNode, key: number, type: TreeType): boolean {
  if (node.keys.length === 1) {
    const only = node.values[0] as number
    const isShared = store.metadata.counts[only] > 1
    const { leaf, valueBytes, keys, values } = store.node(only)
    Object.assign(node, { leaf, valueBytes, keys: [...keys], values: values.map(cloned) })
    if (isShared) store.countChildren(node, type)
    store.release(only)
    return true
  }
  const i = lastAtMost(node.keys, key)
  if (i < 0) return false
  if (i === 0) rebalance2(store, node, 0, type)
  else if (i === node.keys.length - 1) rebalance2(store, node, i - 1, type)
  else rebalance3(store, node, i - 1, type)
  return true
}

/** Puts two siblings together, or shares their entries out evenly: each keeps more than a third (__rebalance2). */
function rebalance2(store: MetadataStore, parent: BTreeNode, i: number, type: TreeType): void {
  const [left, right] = [i, i + 1].map((at) => store.node(shadowChild(store, parent, at, type)))
  mergeOrShare(store, parent, i, left, right)
}

function mergeOrShare(store: MetadataStore, parent: BTreeNode, i: number, left: BTreeNode, right: BTreeNode): void {
  const total = left.keys.length + right.keys.length
  if (total < 2 * (third(left) + 1)) {
    shareOut([left, right], [total])
    store.release(parent.values[i + 1] as number)
    parent.keys.splice(i + 1, 1)
    parent.values.splice(i + 1, 1)
  } else {
    shareOut([left, right], [total >> 1])
    parent.keys[i + 1] = right.keys[0]
  }
}

/** Takes the middle one of three away, or shares their entries out. */
function rebalance3(store: MetadataStore, parent: BTreeNode, i: number, type: TreeType): void {
  const nodes = [i, i + 1, i + 2].map((at) => store.node(shadowChild(store, parent, at, type)))
  const [left, center, right] = nodes
  const total = nodes.reduce((sum, { keys }) => sum + keys.length, 0)
  if (total >= 4 * third(left) + 1) {
    const toRight = Math.floor(total / 3)
    const toLeft = toRight + (toRight * 3 === total ? 0 : 1)
    shareOut(nodes, [toLeft, total - toLeft - toRight])
    parent.keys[i + 1] = center.keys[0]
    parent.keys[i + 2] = right.keys[0]
    return
  }
  const toLeft = left.keys.length + Math.min(roomFor(left.valueBytes) - left.keys.length, center.keys.length)
  shareOut(nodes, [toLeft, 0])
  store.release(parent.values[i + 1] as number)
  parent.keys.splice(i + 1, 1)
  parent.values.splice(i + 1, 1)
  parent.keys[i + 1] = right.keys[0]
  mergeOrShare(store, parent, i, left, right)
}

function third({ valueBytes }: BTreeNode): number {
  return Math.floor(roomFor(valueBytes) / 3)
}

/** Distributes the entries of neighbours anew: so many to each, the rest to the last. */
function shareOut(nodes: readonly BTreeNode[], counts: readonly number[]): void {
  const keys = nodes.flatMap((each) => each.keys)
  const values = nodes.flatMap((each) => each.values)
  nodes.forEach((node, i) => {
    const many = counts.at(i) ?? keys.length
    node.keys = keys.splice(0, many)
    node.values = values.splice(0, many)
  })
}

/** A child to be changed: of this transaction, and its parent's alone (shadow_child, init_child). */
function shadowChild(store: MetadataStore, parent: BTreeNode, i: number, type: TreeType): number {
  const child = store.shadow(parent.values[i] as number, type)
  parent.values[i] = child
  return child
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

/** A sibling has so many free places at least, before entries are moved there (SPACE_THRESHOLD, dm-btree.c). */
const SPACE_THRESHOLD = 8

/**
 * Makes space in a full child: entries move to a sibling that nobody shares, or else one node becomes two, or two become three
 * (rebalance_or_split).
 *
 * @returns the child that the key belongs to now
 */
function rebalanceOrSplit(store: MetadataStore, parent: BTreeNode, i: number, key: number, type: TreeType): number {
  const { counts } = store.metadata
  const last = parent.keys.length - 1
  const isShared = (at: number) => at >= 0 && at <= last && counts[parent.values[at] as number] > 1
  const takes = (at: number) => {
    if (at < 0 || at > last || isShared(at)) return false
    const { keys, valueBytes } = store.node(parent.values[at] as number)
    return roomFor(valueBytes) - keys.length >= SPACE_THRESHOLD
  }
  if (takes(i - 1)) shareWithNext(store, parent, i - 1, type)
  else if (takes(i + 1)) shareWithNext(store, parent, i, type)
  else if (isShared(i - 1) || isShared(i + 1) || last <= 1 || i === 0 || i === last) splitInTwo(store, parent, i)
  else splitInThree(store, parent, i, type)
  return parent.values[Math.max(lastAtMost(parent.keys, key), 0)] as number
}

function shareWithNext(store: MetadataStore, parent: BTreeNode, i: number, type: TreeType): void {
  const [left, right] = [i, i + 1].map((at) => store.node(shadowChild(store, parent, at, type)))
  shareOut([left, right], [(left.keys.length + right.keys.length) >> 1])
  parent.keys[i + 1] = right.keys[0]
}

function splitInTwo(store: MetadataStore, parent: BTreeNode, i: number): void {
  const left = store.node(parent.values[i] as number)
  const block = store.allocate({ ...left, keys: [], values: [] })
  const right = store.node(block)
  shareOut([left, right], [left.keys.length >> 1])
  parent.keys.splice(i + 1, 0, right.keys[0])
  parent.values.splice(i + 1, 0, block)
}

/** The one before and the full one; the new one comes between them. */
function splitInThree(store: MetadataStore, parent: BTreeNode, i: number, type: TreeType): void {
  const left = store.node(shadowChild(store, parent, i - 1, type))
  const right = store.node(parent.values[i] as number)
  const block = store.allocate({ ...left, keys: [], values: [] })
  const middle = store.node(block)
  const total = left.keys.length + right.keys.length
  const toLeft = Math.floor(total / 3)
  shareOut([left, middle, right], [toLeft, (total - toLeft) >> 1])
  parent.keys[i] = right.keys[0]
  parent.keys.splice(i, 0, middle.keys[0])
  parent.values.splice(i, 0, block)
}

/** A full leaf takes a key that it has. */
function hasSpace({ leaf, keys, valueBytes }: BTreeNode, key: number): boolean {
  if (keys.length < roomFor(valueBytes)) return true
  return leaf && keys[lastAtMost(keys, key)] === key
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
