/** The program of a walker thread (walks/walkers.ts starts it): its function and its targets. */
import { parentPort } from 'node:worker_threads'
import { walkOf } from './targets.ts'
import { serveWalks } from './walks/walk-worker.ts'

if (parentPort) serveWalks(parentPort, walkOf)
