/**
 * The catalog's thread: opens the database and carries out one call after the other, each to the end.
 *
 * A connection that failed once (a full disk, an error while reading) is not trusted with another call: the thread closes the database
 * and ends, and the next call opens it anew, with every check.
 */
import { parentPort, workerData } from 'node:worker_threads'
import { type CallName, catalogCalls } from './calls.ts'
import { catalogError, type CatalogDatabase, openDatabase } from './database.ts'
import { type FromCatalog, type Start, toPortable, type ToCatalog } from './messages.ts'

const { path, lockWaitMs } = workerData as Start

if (parentPort) serve(parentPort)

function serve(port: NonNullable<typeof parentPort>): void {
  const say = (message: FromCatalog) => {
    port.postMessage(message)
    // What was posted still arrives.
    if (message.last) port.close()
  }

  let database: CatalogDatabase
  try {
    database = openDatabase(path, { lockWaitMs })
  } catch (thrown) {
    say({ error: toPortable(catalogError(path, thrown)), last: true })
    return
  }
  say({ result: database.opening, last: false })

  const calls = catalogCalls(database) as Record<CallName, (...args: unknown[]) => unknown>
  port.on('message', ({ call, args }: ToCatalog) => {
    try {
      if (call === 'close') {
        database.close()
        say({ result: undefined, last: true })
      } else say({ result: calls[call](...args), last: false })
    } catch (thrown) {
      const error = catalogError(path, thrown)
      const raw = (thrown as NodeJS.ErrnoException).code === 'ERR_SQLITE_ERROR'
      const broken = raw || error.code === 'DM_CATALOG_UNAVAILABLE' || error.code === 'DM_CATALOG_DAMAGED'
      if (broken) closeQuietly(database)
      say({ error: toPortable(error), last: broken })
    }
  })
}

function closeQuietly(database: CatalogDatabase): void {
  try {
    database.close()
  } catch {
    // The error that led here is the one to tell.
  }
}
