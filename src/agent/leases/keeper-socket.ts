/**
 * The socket of a lease's keeper. It shows that the keeper is alive.
 *
 * It is in the catalog's folder, where only root can make a file. In an open name space, such as abstract sockets, any
 * process could take the name and keep every keeper out. All agents that follow each other on a node share the catalog,
 * whatever containers they are in. A keeper that was killed leaves the file, but nothing answers on it.
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

/** Whether somebody listens. @throws Error with the system's code when that cannot be told */
export async function isAnswered(path: string): Promise<boolean> {
  return atAddress(path, answers)
}

/** Listens. @returns undefined when another process does. @throws Error of the system */
export async function listenAt(path: string): Promise<Server | undefined> {
  return atAddress(path, async (address) => {
    for (;;) {
      const outcome = await listen(address)
      if (outcome instanceof Server) return outcome
      if (outcome.code !== 'EADDRINUSE') throw outcome
      if (await answers(address)) return undefined
      // The file of a keeper that was killed. A catalog has one agent, so no other process removes it at the same time.
      await rm(address, { force: true })
    }
  })
}

/** A socket's address has at most 107 bytes, however long the folder's path is. */
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
        // Its queue is full, or it reset the connection: it exists, or did a moment ago. The caller will ask again.
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
