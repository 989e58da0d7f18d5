/**
 * Memory that begins at a page: O_DIRECT wants that. WebAssembly.Memory is the one such allocation that plain Node
 * offers. However small, each takes 10 GB of addresses, and processes may have a limit to those: so ask for few, large
 * pieces.
 */

/** Its types are in the DOM library, of which we want nothing else. */
declare const WebAssembly: {
  Memory: new (size: { initial: number; maximum: number }) => { readonly buffer: ArrayBuffer }
}

const WASM_PAGE_BYTES = 65_536

/** So many bytes, all zero. */
export function pageAligned(bytes: number): Buffer {
  const pages = Math.ceil(bytes / WASM_PAGE_BYTES)
  return Buffer.from(new WebAssembly.Memory({ initial: pages, maximum: pages }).buffer, 0, bytes)
}
