/**
 * Where the keeper of a lease listens while it lives, so that others can tell that it does.
 *
 * A socket in the catalog's folder, in which only root can make a file. In a space of names that are anybody's, such as abstract sockets,
 * whoever took the name would keep every keeper out. The agents that follow each other on a node have the catalog in common, whatever
 * containers they are in. Who is killed leaves the file; nobody answers at it then.
 */
import { createHash } from 'node:crypto'
import { constants } from 'node:fs'
import { open, rm } from 'node:fs/promises'
import { connect, createServer, Server } from 'node:net'
import { basename, dirname, join } from 'node:path'

/** @param device the lease's */
export function keeperSocket(catalogPath: string, device: string): string {
  const whose = createHash('sha256')
    .update(`${basename(catalogPath)}\0${device}`)
    .digest('hex')
  return join(dirname(catalogPath), `keeper-${whose.slice(0, 16)}.socket`)
}

/** Whether somebody listens. @throws Error with the code of what keeps that from being told */
export async function isAnswered(path: string): Promise<boolean> {
  return atAddress(path, answers)
}

/** Listens. @returns undefined where somebody else does. @throws Error of the system */
export async function listenAt(path: string): Promise<Server | undefined> {
  return atAddress(path, async (address) => {
    for (;;) {
      const outcome = await listen(address)
      if (outcome instanceof Server) return outcome
      if (outcome.code !== 'EADDRINUSE') throw outcome
      if (await answers(address)) return undefined
      // Of one that was killed. There is one agent to a catalog, so that nobody else is about to do the same.
      await rm(address, { force: true })
    }
  })
}

/** A socket's address has at most 107 bytes, whatever the folder's path has. */
async function atAddress<T>(path: string, use: (address: string) => Promise<T>): Promise<T> {
  const folder = await open(dirname(path), constants.O_RDONLY | constants.O_DIRECTORY)
  try {
    return await use(`/proc/self/fd/${folder.fd}/${basename(path)}`)
  } finally {
    await folder.close()
  }
}

async function answers(address: string): Promise<boolean> {
  const connection = connect(address)
  try {
    return await new Promise((resolve, reject) => {
      connection.once('connect', () => resolve(true))
      connection.once('error', (error: NodeJS.ErrnoException) => {
        // Full, or reset: it is there, or was a moment ago; whoever asks, asks again.
        if (error.code === 'ECONNREFUSED' || error.code === 'ENOENT') resolve(false)
        else if (error.code === 'EAGAIN' || error.code === 'ECONNRESET') resolve(true)
        else reject(error)
      })
    })
  } finally {
    connection.destroy()
  }
}

function listen(address: string): Promise<Server | NodeJS.ErrnoException> {
  const server = createServer((connection) => connection.destroy())
  return new Promise((resolve) => {
    server.once('error', resolve)
    server.listen(address, () => resolve(server))
  })
}
