/**
 * Arrays in metadata blocks, changed as the kernel's are (drivers/md/persistent-data/dm-array.c): packed elements in array blocks, which a
 * B-tree leads to by their number. The elements of these arrays count nothing.
 */
import { type ArrayBlock, elementsOf } from './blocks.ts'
import { emptyTree, entriesOf, insert, lookup, releaseTree, remove, type TreeType } from './btree.ts'
import type { MetadataStore } from './store.ts'

type ElementBytes = ArrayBlock['valueBytes']

/** 32 bits each, the lower ones first; the second one is nothing in an array of 4-byte elements. */
export type Element = readonly [low: number, high: number]

const blocks: TreeType = {
  valueBytes: 8,
  increment: (store, block) => store.metadata.add(block as number, 1),
  decrement: (store, block) => store.release(block as number)
}

export function emptyArray(store: MetadataStore): number {
  return emptyTree(store, blocks)
}

/** Makes an array longer, by zeros, or shorter (dm_array_resize). @returns the new root */
export function resizeArray(store: MetadataStore, root: number, from: number, to: number, bytes: ElementBytes): number {
  const room = elementsOf(bytes)
  const [fullBefore, full] = [Math.floor(from / room), Math.floor(to / room)]
  const [restBefore, rest] = [from % room, to % room]
  if (to < from) {
    let shorter = root
    for (let i = Math.ceil(to / room); full < fullBefore && i < Math.ceil(from / room); i++) {
      shorter = remove(store, shorter, i, blocks)
    }
    return rest > 0 ? setCount(store, shorter, full, rest) : shorter
  }
  if (full === fullBefore) {
    if (to === from) return root
    return restBefore > 0 ? setCount(store, root, full, rest) : addBlock(store, root, full, rest, bytes)
  }
  let longer = restBefore > 0 ? setCount(store, root, fullBefore, room) : root
  for (let i = Math.ceil(from / room); i < full; i++) longer = addBlock(store, longer, i, room, bytes)
  return rest > 0 ? addBlock(store, longer, full, rest, bytes) : longer
}

/** One user less of an array (dm_array_del). */
export function releaseArray(store: MetadataStore, root: number): void {
  releaseTree(store, root, blocks)
}

export function elementAt(store: MetadataStore, root: number, index: number, bytes: ElementBytes): Element {
  const room = elementsOf(bytes)
  const block = lookup(store, root, Math.floor(index / room)) as number
  const { words, count } = store.array(block)
  const at = index % room
  if (at >= count) throw new Error(`an array without element ${index}`)
  return bytes === 4 ? [words[at], 0] : [words[2 * at], words[2 * at + 1]]
}

/** @returns the new root */
export function setElement(
  store: MetadataStore,
  root: number,
  index: number,
  element: Element,
  bytes: ElementBytes
): number {
  const room = elementsOf(bytes)
  const { root: newRoot, block } = blockToChange(store, root, Math.floor(index / room))
  const at = index % room
  if (at >= block.count) throw new Error(`an array without element ${index}`)
  if (bytes === 4) block.words[at] = element[0]
  else block.words.set(element, 2 * at)
  return newRoot
}

/** Reads an array from disk, as far as it is not there yet. @throws where it is damaged */
export function readArray(store: MetadataStore, root: number): void {
  store.readTree(root, (block) => {
    store.readArrayBlock(block as number)
  })
}

export function arrayLength(store: MetadataStore, root: number): number {
  return [...entriesOf(store, root)].reduce((sum, [, block]) => sum + store.array(block as number).count, 0)
}

function addBlock(store: MetadataStore, root: number, index: number, count: number, bytes: ElementBytes): number {
  const words = new Uint32Array((elementsOf(bytes) * bytes) / 4)
  const block = store.allocate({ kind: 'array', valueBytes: bytes, count, words })
  return insert(store, root, index, block, blocks)
}

/** A block gets more elements, of zeros, or loses some. */
function setCount(store: MetadataStore, root: number, index: number, count: number): number {
  const { root: newRoot, block } = blockToChange(store, root, index)
  block.count = count
  block.words.fill(0, (count * block.valueBytes) / 4)
  return newRoot
}

/** Shadows a block, and then the way to it if it has moved (shadow_ablock). */
function blockToChange(store: MetadataStore, root: number, index: number): { root: number; block: ArrayBlock } {
  const from = lookup(store, root, index) as number
  const to = store.shadowArray(from)
  if (to === from) return { root, block: store.array(to) }
  // The shadow has taken a user away that the tree still is: putting the new one in takes it away again.
  store.metadata.add(from, 1)
  const newRoot = insert(store, root, index, to, blocks)
  return { root: newRoot, block: store.array(to) }
}
