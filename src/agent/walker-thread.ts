/**
 * The program of a walker thread (walks/walkers.ts starts it): what it does, and for which targets.
 */
import { parentPort } from 'node:worker_threads'
import { walkOf } from './targets.ts'
import { serveWalks } from './walks/walk-worker.ts'

if (parentPort) serveWalks(parentPort, walkOf)
