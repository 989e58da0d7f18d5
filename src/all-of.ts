/** Several things at once, none of which goes on once the caller hears of their end. */

/** Waits for all of them, also where one fails. @throws what the first of them throws */
export async function allOf<T extends readonly unknown[]>(tasks: {
  readonly [K in keyof T]: Promise<T[K]>
}): Promise<T> {
  const settled = await Promise.allSettled(tasks)
  return settled.map((each) => {
    if (each.status === 'rejected') throw each.reason
    return each.value
  }) as unknown as T
}
