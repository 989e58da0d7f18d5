/**
 * Keepers of metadata snapshots as processes of a simulated machine: they outlive the agent, die on their own, and leave notes in a file
 * system that keeps what was synced, and of the rest what it likes.
 */
import { CallFailed } from '../../../native/call.ts'
import type { LeaseRecord } from '../../../src/agent/catalog/lease.ts'
import {
  type Keeper,
  type KeeperAnswer,
  KeeperLost,
  type KeeperQuestion,
  type Keepers,
  type MetadataPlace
} from '../../../src/agent/leases/lease-keeper.ts'
import { SlotHolder, type SlotPlace } from '../../../src/agent/leases/slot-holder.ts'
import { DeltamapperError } from '../../../src/errors.ts'
import { Refused } from '../kernel/refused.ts'
import type { Scheduler } from './scheduler.ts'

/** The slot that is kept, as a keeper's process reaches it. */
export interface KeptSlot {
  readonly kind: SlotPlace['kind']
  readonly scheduler: Scheduler
  /** Sends its device a message in somebody's name. @throws Refused */
  send(owner: string, text: string): Promise<void>
  look(owner: string, metadata: MetadataPlace): ReturnType<SlotPlace['look']>
}

/** Notes by device. A note is synced when it is written; that it was removed is not. */
export class Notes {
  readonly #notes = new Map<string, number>()
  readonly #removed = new Map<string, number>()

  write(device: string, takenAt: number): void {
    this.#notes.set(device, takenAt)
    this.#removed.delete(device)
  }

  remove(device: string): void {
    const note = this.#notes.get(device)
    if (note !== undefined) this.#removed.set(device, note)
    this.#notes.delete(device)
  }

  read(device: string): number | undefined {
    return this.#notes.get(device)
  }

  powerCut(comesBack: () => boolean): void {
    for (const [device, takenAt] of this.#removed) if (comesBack()) this.#notes.set(device, takenAt)
    this.#removed.clear()
  }
}

/** One keeper's process. */
class Process {
  readonly owner: string
  readonly device: string
  readonly agent: string
  readonly holder: SlotHolder
  isAlive = true
  isReleasing = false
  #work: Promise<unknown> = Promise.resolve()
  /** Told when it is gone. */
  readonly #gone = Promise.withResolvers<void>()

  constructor(owner: string, device: string, agent: string, holder: SlotHolder) {
    this.owner = owner
    this.device = device
    this.agent = agent
    this.holder = holder
  }

  get gone(): Promise<void> {
    return this.#gone.promise
  }

  /** One question after the other. */
  ask(question: KeeperQuestion): Promise<KeeperAnswer> {
    const answer = this.#work.then(() => this.holder.answer(question))
    this.#work = answer
    return answer
  }

  /** Its agent is gone, or has let it go. */
  disconnect(): void {
    this.#work = this.#work
      .then(() => this.holder.releaseOnOurOwn())
      .finally(() => {
        this.die()
      })
  }

  die(): void {
    this.isAlive = false
    this.#gone.resolve()
  }
}

export class SimulatedKeepers {
  readonly notes = new Notes()
  readonly #slot: KeptSlot
  #processes: Process[] = []
  #started = 0

  constructor(slot: KeptSlot) {
    this.#slot = slot
  }

  get alive(): readonly Process[] {
    return this.#processes.filter(({ isAlive }) => isAlive)
  }

  /** Its parent is no more: it learns that from its channel. */
  agentDied(agent: string): void {
    for (const each of this.alive) if (each.agent === agent) each.disconnect()
  }

  kill(keeper: Process): void {
    this.#slot.scheduler.kill(keeper.owner)
    keeper.die()
  }

  killAll(): void {
    for (const each of this.alive) this.kill(each)
  }

  /** As an agent sees them. */
  of(agent: string): Keepers {
    const { scheduler } = this.#slot
    const { notes } = this
    return {
      start: async ({ device, takenAt }, metadata) => {
        const process = await scheduler.io(agent, () => this.#start(agent, device, takenAt, metadata))
        return this.#handle(agent, process)
      },
      atWork: (key) => scheduler.io(agent, () => this.alive.some(({ device }) => device === key)),
      withNote: (record: LeaseRecord) =>
        scheduler.io(agent, () => {
          const isNoted = record.state === 'held' && notes.read(record.device) === record.takenAt
          return isNoted ? { ...record, state: 'releasing' as const } : record
        }),
      removeNote: (device) =>
        scheduler.io(agent, () => {
          notes.remove(device)
        })
    }
  }

  #start(agent: string, device: string, takenAt: number, metadata: MetadataPlace): Process {
    if (this.alive.some((each) => each.device === device)) {
      throw new DeltamapperError('DM_DEVICE_BUSY', `another process is dealing with ${device}`, 'ask again')
    }
    const { scheduler, kind } = this.#slot
    const owner = `keeper ${++this.#started}`
    const process: Process = new Process(
      owner,
      device,
      agent,
      new SlotHolder({
        kind,
        send: async (text) => {
          try {
            await this.#slot.send(owner, text)
          } catch (error) {
            if (!(error instanceof Refused)) throw error
            throw new CallFailed({ reason: 'refused', errno: error.errno === 'EBUSY' ? 16 : 22, said: [] })
          }
        },
        look: () => this.#slot.look(owner, metadata),
        writeNote: () =>
          scheduler.io(owner, () => {
            this.notes.write(device, takenAt)
          }),
        removeNote: () =>
          scheduler.io(owner, () => {
            this.notes.remove(device)
          }),
        end: () => {
          this.kill(process)
          throw new Error('it is gone')
        }
      })
    )
    this.#processes = [...this.alive, process]
    return process
  }

  #handle(agent: string, process: Process): Keeper {
    const { scheduler } = this.#slot
    let isLetGo = false
    const ask = async (question: KeeperQuestion): Promise<KeeperAnswer> => {
      if (isLetGo || !process.isAlive) throw new KeeperLost(`${process.owner} is gone`)
      const lost = process.gone.then(() => scheduler.io(agent, () => undefined))
      await scheduler.io(agent, () => undefined)
      const answer = await Promise.race([process.ask(question), lost])
      if (answer === undefined) throw new KeeperLost(`${process.owner} is gone`)
      return scheduler.io(agent, () => answer)
    }
    const expect = <A extends KeeperAnswer['answer']>(answer: KeeperAnswer, expected: A) => {
      if (answer.answer === expected) return answer as Extract<KeeperAnswer, { answer: A }>
      if (answer.answer === 'refused') {
        const code = answer.failure.errno === 16 ? 'DM_DEVICE_BUSY' : 'DM_CALL_FAILED'
        throw new DeltamapperError(code, 'the kernel said no', 'ask again')
      }
      if ('code' in answer) throw new DeltamapperError(answer.code, answer.message, answer.remedy)
      throw new Error(`a keeper answered ${answer.answer}`)
    }
    return {
      get alive() {
        return !isLetGo && process.isAlive
      },
      reserve: async () => expect(await ask({ ask: 'reserve' }), 'reserved'),
      adopt: async (heldRoot, facts) => {
        expect(await ask({ ask: 'adopt', heldRoot, facts }), 'adopted')
      },
      release: async () => {
        const answer = await ask({ ask: 'release' })
        if (answer.answer === 'not-ours') return answer.answer
        expect(answer, 'released')
        return 'released'
      },
      end: async () => {
        if (!isLetGo && process.isAlive) process.disconnect()
        isLetGo = true
        await process.gone.then(() => scheduler.io(agent, () => undefined))
      }
    }
  }
}
