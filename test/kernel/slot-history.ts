/**
 * What was in each of the storm's slots, and when: as far as can be told from outside. While something happens, both what was before
 * and what will be may be seen.
 */
import type { Offspring } from './block-map.ts'
import type { SlotEvent } from './storm-weather.ts'

export type SlotState = {
  /** Counts up with every snapshot of every slot; what is older has a lower one. */
  readonly serial: number
  /** For a person. */
  readonly what: string
} & (({ readonly kind: 'there' } & Offspring) | { readonly kind: 'gone' })

interface Stay {
  readonly name: string
  readonly state: SlotState
  /** When it may have been seen first, and last. */
  readonly from: bigint
  until: bigint | undefined
}

/** States from so many before the latest on are kept for each slot: no walk takes that long. */
const MOST_STAYS = 2000

export class SlotHistory {
  readonly #stays = new Map<number, Stay[]>()
  #serial = 0

  /** Events come in the order in which they were made. */
  add({ slot, phase, at, happening }: SlotEvent): void {
    const stays = this.#staysOf(slot)
    if (phase === 'done') {
      // What was before cannot be seen any more.
      stays.at(-2)!.until = at
      return
    }
    const { name, state } = stays.at(-1)!
    if (happening.kind === 'created') {
      const { name: newName, of } = happening
      const serial = ++this.#serial
      const what = `${newName}, a snapshot of stable-${of}`
      stays.push({
        name: newName,
        state: { kind: 'there', of, touched: new Map(), serial, what },
        from: at,
        until: undefined
      })
    } else if (happening.kind === 'deleted') {
      const gone = { kind: 'gone', serial: state.serial, what: `${name} gone` } as const
      stays.push({ name, state: gone, from: at, until: undefined })
    } else {
      if (state.kind === 'gone') throw new Error(`slot ${slot} was ${happening.kind}, and there is nothing in it`)
      const touched = new Map(state.touched).set(happening.block, happening.kind)
      const what = `${state.what}, block ${happening.block} ${happening.kind}`
      stays.push({ name, state: { ...state, touched, what }, from: at, until: undefined })
    }
    if (stays.length > MOST_STAYS) stays.splice(0, MOST_STAYS / 2)
  }

  /** Everything that may have been seen between two moments; by a name, only what went by it. */
  statesOf(slot: number, from: bigint, until: bigint, name?: string): SlotState[] {
    const overlapping = this.#staysOf(slot).filter(
      (stay) => stay.from <= until && (stay.until === undefined || stay.until >= from)
    )
    if (name === undefined) return overlapping.map(({ state }) => state)
    return overlapping.map((stay) =>
      stay.name === name ? stay.state : { kind: 'gone', serial: stay.state.serial, what: `${name} gone` }
    )
  }

  /** What the latest snapshot in a slot is called, whether or not it is still there. */
  latestName(slot: number): string {
    return this.#staysOf(slot).at(-1)!.name
  }

  #staysOf(slot: number): Stay[] {
    let stays = this.#stays.get(slot)
    if (stays === undefined) {
      const nothing = { kind: 'gone', serial: 0, what: 'nothing yet' } as const
      stays = [{ name: 'nothing', state: nothing, from: 0n, until: undefined }]
      this.#stays.set(slot, stays)
    }
    return stays
  }
}
