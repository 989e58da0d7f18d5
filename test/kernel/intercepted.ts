/** Calls of an object, looked at and changed one by one: of libdevmapper, or of the catalog and its concerns. */

/**
 * What becomes of a call.
 *
 * @param name `suspend`; of a concern of the catalog, `leases.begin`
 * @param go carries it out
 */
export type Interception = (name: string, args: unknown[], go: () => unknown) => unknown

/** The same object, each call of which is in the hands of a function. */
export function intercepted<T extends object>(target: T, intercept: Interception, prefix = ''): T {
  return new Proxy(target, {
    get: (object, key) => {
      const value: unknown = Reflect.get(object, key, object)
      const name = prefix + String(key)
      if (typeof value === 'function')
        return (...args: unknown[]) => intercept(name, args, () => Reflect.apply(value, object, args) as unknown)
      return typeof value === 'object' && value !== null ? intercepted(value, intercept, `${name}.`) : value
    }
  })
}
