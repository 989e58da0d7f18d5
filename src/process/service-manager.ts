/**
 * The service manager that has started this process, if one has: what it is told, and where nobody is, nothing is loaded for it.
 */

/** Says that it may go on with what waits for this service. @throws Error when that cannot be said */
export async function sayReady(): Promise<void> {
  if (process.env['NOTIFY_SOCKET'] === undefined) return
  const { tellReady } = await import('../../native/service-manager.ts')
  tellReady()
}
