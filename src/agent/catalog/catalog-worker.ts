/**
 * The catalog's thread: opens the database and runs one call after the other, each to its end.
 *
 * After a failure (a full disk, a read error), the connection is not trusted with another call. The thread closes the
 * database and ends. The next call opens it anew, with every check.
 */
import { parentPort, workerData } from 'node:worker_threads'
import { catalogCalls, runCall } from './calls.ts'
import { catalogError, type CatalogDatabase, openDatabase } from './database.ts'
import { type FromCatalog, type Start, type ToCatalog } from './messages.ts'
import { toPortable } from '../../portable-error.ts'

const { path, lockWaitMs } = workerData as Start

if (parentPort) serve(parentPort)

function serve(port: NonNullable<typeof parentPort>): void {
  const say = (message: FromCatalog) => {
    port.postMessage(message)
    // Posted messages still arrive.
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

  const calls = catalogCalls(database)
  port.on('message', ({ call, args }: ToCatalog) => {
    try {
      if (call === 'close') {
        database.close()
        say({ result: undefined, last: true })
      } else say({ result: runCall(calls, call, args), last: false })
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
    // Report the error that led here.
  }
}
