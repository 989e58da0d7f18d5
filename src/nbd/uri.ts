/** Where an export is, for clients that take a URI (the NBD URI specification, doc/uri.md). */

/** A slash of a name may stay. */
export function nbdUri(name: string, socket: string): string {
  return `nbd+unix:///${name.split('/').map(encodeURIComponent).join('/')}?socket=${encodeURIComponent(socket)}`
}
