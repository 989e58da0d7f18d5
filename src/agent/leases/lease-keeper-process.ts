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
import { CallFailed } from '../../../native/call.ts'
import { endAtOnce } from '../../../native/end-at-once.ts'
import { Libdevmapper } from '../../../native/libdevmapper.ts'
import type { ThinSuperblock } from '../../devicemapper/thin/superblock.ts'
import { asDeltamapperError } from '../../errors.ts'
import type { HeldSlot } from '../catalog/lease.ts'
import { removeNote, writeNote } from './release-note.ts'
import { listenAt } from './keeper-socket.ts'
import { readEraSlot } from './era-slot-content.ts'
import { type KeeperAnswer, type KeeperQuestion, type KeeperStart, slotMessages } from './lease-keeper.ts'
import { readSlot } from './pool-slot.ts'

const { kind, pool, metadata, socket, note, takenAt } = JSON.parse(process.argv[2] ?? '') as KeeperStart
const messages = slotMessages[kind]
/** Our metadata snapshot: its block and its content. */
let ours: { heldRoot: number; facts: string } | undefined
let library: Libdevmapper | undefined
let listens = false
let work = Promise.resolve()

function send(text: string): void {
  library ??= new Libdevmapper({ devDirectory: '/dev', udevTimeoutMs: 5000 })
  library.perform({ call: 'message', device: pool, sector: 0, text })
}

/** The content of the slot, and for a pool the superblock copy. */
async function look(): Promise<HeldSlot & { held?: ThinSuperblock | undefined }> {
  const { path, device } = metadata
  return kind === 'era' ? readEraSlot(path, device) : readSlot(path, device)
}

async function reserve(): Promise<KeeperAnswer> {
  send(messages.reserve)
  try {
    const { heldRoot, facts, held } = await look()
    if (facts === undefined || (kind === 'thin' && held === undefined))
      throw new Error(`it is not at block ${heldRoot} any more`)
    ours = { heldRoot, facts }
    return { answer: 'reserved', heldRoot, facts, held }
  } catch (thrown) {
    // Without its content, nobody could recognise and release it later. Now we still can.
    try {
      send(messages.release)
    } catch {
      // It is ours, and stays. The agent takes our end as "unknown", which is true.
      endAtOnce()
    }
    const { code, message, remedy } = asDeltamapperError(thrown)
    return { answer: 'given-back', code, message, remedy }
  }
}

async function release(): Promise<KeeperAnswer> {
  if (ours === undefined) return { answer: 'released' }
  const now = await look()
  if (now.heldRoot !== ours.heldRoot || now.facts !== ours.facts) {
    ours = undefined
    return { answer: 'not-ours', heldRoot: now.heldRoot }
  }
  send(messages.release)
  ours = undefined
  return { answer: 'released' }
}

async function answer(question: KeeperQuestion): Promise<KeeperAnswer> {
  try {
    switch (question.ask) {
      case 'reserve':
        return await reserve()
      case 'release':
        return await release()
      case 'adopt':
        ours = { heldRoot: question.heldRoot, facts: question.facts }
        return { answer: 'adopted' }
    }
  } catch (thrown) {
    if (thrown instanceof CallFailed) return { answer: 'refused', failure: thrown.failure }
    const { code, message, remedy } = asDeltamapperError(thrown)
    return { answer: 'failed', code, message, remedy }
  }
}

function say(message: KeeperAnswer | 'ready' | 'occupied'): void {
  // The agent may be gone by now; `disconnect` follows.
  if (process.connected) process.send?.(message, undefined, undefined, () => undefined)
}

process.on('message', (question: KeeperQuestion) => {
  work = work.then(async () => say(await answer(question)))
})
/**
 * The agent is gone. Without a note there is no release: then the record still proves to the next agent that it is
 * ours.
 */
async function releaseOnOurOwn(): Promise<void> {
  if (ours === undefined) return
  await writeNote(note, takenAt)
  const { answer: outcome } = await answer({ ask: 'release' })
  if (outcome === 'refused' || outcome === 'failed') await removeNote(note)
}

process.on('disconnect', () => {
  work = work.then(releaseOnOurOwn).finally(() => {
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
