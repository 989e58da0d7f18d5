/** The service manager that started this process, if one did. Without one, nothing is loaded for it. */

/** Tells it that services waiting for this one may start. @throws Error when that fails */
export async function sayReady(): Promise<void> {
  if (process.env['NOTIFY_SOCKET'] === undefined) return
  const { tellReady } = await import('../../native/service-manager.ts')
  tellReady()
}
