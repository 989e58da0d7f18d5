/**
 * Objects of the Kubernetes API as they come: JSON, of which only the metadata is promised. Fields are read by path,
 * and are a string or missing.
 */

export interface KubernetesObject {
  readonly apiVersion?: string
  readonly kind?: string
  readonly metadata: {
    readonly name: string
    readonly namespace?: string
    readonly uid?: string
    readonly resourceVersion?: string
    /** RFC 3339, in whole seconds. */
    readonly creationTimestamp?: string
    readonly labels?: Readonly<Record<string, string>>
  }
}

/** The value at a path; undefined if the path ends early. */
export function fieldOf(object: unknown, ...path: readonly (string | number)[]): unknown {
  let value = object
  for (const step of path) {
    if (typeof value !== 'object' || value === null || !Object.hasOwn(value, step)) return undefined
    value = (value as Record<string | number, unknown>)[step]
  }
  return value
}

/** The string at a path; undefined if it is missing or empty, which Kubernetes does not distinguish. */
export function textOf(object: unknown, ...path: readonly (string | number)[]): string | undefined {
  const value = fieldOf(object, ...path)
  return typeof value === 'string' && value !== '' ? value : undefined
}

/** The list at a path; empty if there is none. */
export function listOf(object: unknown, ...path: readonly (string | number)[]): readonly unknown[] {
  const value = fieldOf(object, ...path)
  return Array.isArray(value) ? value : []
}

/**
 * The object with nothing but its name and what stands at some paths: the rest is often more than nine tenths of it.
 *
 * @param paths none of which is the beginning of another
 */
export function withOnly(object: KubernetesObject, paths: readonly (readonly string[])[]): KubernetesObject {
  const { namespace, name } = object.metadata
  const kept: Record<string, unknown> = { metadata: { name, ...(namespace !== undefined && { namespace }) } }
  for (const path of paths) {
    const value = fieldOf(object, ...path)
    if (value === undefined) continue
    let within = kept
    for (const step of path.slice(0, -1)) within = (within[step] ??= {}) as Record<string, unknown>
    // A copy: strings that were cut out of a page would keep all of it.
    within[path.at(-1)!] = JSON.parse(JSON.stringify(value)) as unknown
  }
  return kept as unknown as KubernetesObject
}

/** When the API server made it, in milliseconds since 1970; the server knows whole seconds. */
export function createdAt({ metadata }: KubernetesObject): number | undefined {
  const ms = Date.parse(metadata.creationTimestamp ?? '')
  return Number.isNaN(ms) ? undefined : ms
}
