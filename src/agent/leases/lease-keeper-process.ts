/**
 * The process that holds the metadata snapshot of one pool, or one era device, for the agent: it sends both messages, and when the agent is gone, however that
 * happened, it releases what it has reserved and ends.
 *
 * Only whoever reserved a metadata snapshot knows for certain that it is theirs. Were that the agent itself, its death at the wrong
 * moment would leave one that nobody may release (see catalog/lease.ts), growing the pool's metadata until a person comes. So the
 * messages are sent from here, where there is little to go wrong, and a kill of the agent does not reach (a process group of its own,
 * deaf to signals that end processes politely). What remains for the records in the catalog is the death of both at once: a power cut,
 * a whole container killed.
 *
 * While it lives, it listens on a socket beside the catalog (keeper-socket.ts): an agent that has just been started can tell that its
 * predecessor's lease is still being dealt with, and there are never two keepers of a pool.
 */
import { rmSync } from 'node:fs'
import { endAtOnce } from '../../../native/end-at-once.ts'
import { Libdevmapper } from '../../../native/libdevmapper.ts'
import { asDeltamapperError } from '../../errors.ts'
import { removeNote, writeNote } from './keeper-note.ts'
import { listenAt } from './keeper-socket.ts'
import { readEraSlot } from './era-slot-content.ts'
import type { KeeperAnswer, KeeperQuestion, KeeperStart } from './lease-keeper.ts'
import { readSlot } from './pool-slot.ts'
import { SlotHolder } from './slot-holder.ts'

const { kind, pool, metadata, socket, note, takenAt } = JSON.parse(process.argv[2] ?? '') as KeeperStart
let library: Libdevmapper | undefined
let listens = false
let work = Promise.resolve()

const holder = new SlotHolder({
  kind,
  send(text) {
    library ??= new Libdevmapper({ devDirectory: '/dev', udevTimeoutMs: 5000 })
    library.perform({ call: 'message', device: pool, sector: 0, text })
  },
  look: async () => {
    const { path, device } = metadata
    return kind === 'era' ? readEraSlot(path, device) : readSlot(path, device)
  },
  writeNote: () => writeNote(note, takenAt),
  removeNote: () => removeNote(note),
  end: endAtOnce
})

function say(message: KeeperAnswer | 'ready' | 'occupied'): void {
  // The agent may have gone meanwhile; `disconnect` follows.
  if (process.connected) process.send?.(message, undefined, undefined, () => undefined)
}

process.on('message', (question: KeeperQuestion) => {
  work = work.then(async () => say(await holder.answer(question)))
})

process.on('disconnect', () => {
  work = work
    .then(() => holder.releaseOnOurOwn())
    .finally(() => {
      if (listens) rmSync(socket, { force: true })
      endAtOnce()
    })
})
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => undefined)

listenAt(socket).then(
  (server) => {
    listens = server !== undefined
    say(listens ? 'ready' : 'occupied')
    if (!listens) process.disconnect()
  },
  (thrown: unknown) => {
    const { code, message, remedy } = asDeltamapperError(thrown)
    say({ answer: 'failed', code, message, remedy })
    process.disconnect()
  }
)
