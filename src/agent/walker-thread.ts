/** The program of a walker thread (walks/walkers.ts starts it): its function and the targets' walks. */
import { parentPort, workerData } from 'node:worker_threads'
import { walkOf } from './walks/registry.ts'
import { serveWalks, warmUp } from './walks/walk-worker.ts'
import type { WalkerData } from './walks/walk-messages.ts'

if (parentPort) {
  const data = (workerData as WalkerData | null) ?? undefined
  serveWalks(parentPort, walkOf, data)
  void warmUp(parentPort, data)
}
