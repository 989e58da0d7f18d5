/**
 * The lease keeper: the process that holds the metadata snapshot of one pool or era device for the agent. It sends both
 * messages. When the agent is gone, for any reason, it releases what it has reserved and ends.
 *
 * Only the process that reserved a metadata snapshot knows for certain whose it is. If that were the agent itself, its
 * death at the wrong moment would leave a metadata snapshot that nothing may release (see catalog/lease.ts), and that
 * makes the pool's metadata grow until a person comes. So this process sends the messages. It does little that can
 * fail, and a kill of the agent does not reach it: it has a process group of its own, and ignores the signals that end
 * processes politely. The records in the catalog are for the death of both at once: a power cut, or a container that is
 * killed as a whole.
 *
 * While it lives, it listens on a socket beside the catalog (keeper-socket.ts). So a new agent knows that its
 * predecessor's lease is still being handled, and a pool never has two keepers.
 */
import { rmSync } from 'node:fs'
import { endAtOnce } from '../../../native/end-at-once.ts'
import { Libdevmapper } from '../../../native/libdevmapper.ts'
import { asDeltamapperError } from '../../errors.ts'
import { removeNote, writeNote } from './release-note.ts'
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
  // The agent may be gone by now; `disconnect` follows.
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
