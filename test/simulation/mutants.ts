/**
 * Guards of the product, each taken away in turn: a world in which nobody misses it cannot show that it is needed.
 *
 * A mutant is a piece of a source file and what stands in its place. The pieces have to be there once each (mutants.test.ts), so that
 * whoever changes a guard brings its mutant along.
 */

import { eraMutants } from './era-mutants.ts'
import { ownedMutants } from './owned-mutants.ts'
import type { World } from './world/life.ts'
import type { Theme } from './world/themes.ts'

export interface Mutant {
  readonly name: string
  /** What is taken away, in words. */
  readonly guard: string
  /** Where it is missed; the thin world where left out. */
  readonly world?: World
  readonly file: string
  readonly from: string
  readonly to: string
  /** What the lives that miss it are about (world/themes.ts); left out where any may. */
  readonly theme?: Theme
  /** Other guards that stand in for it: only where all of them are gone something comes of it. */
  readonly coveredBy?: readonly string[]
  /** Why no life misses it. */
  readonly unseen?: string
}

const backend = 'src/agent/answers/thin-snapshots.ts'
const served = 'src/agent/catalog/admission.ts'
const walk = 'src/agent/walks/thin-walk.ts'
const metadata = 'src/devicemapper/thin/pool-metadata.ts'
const delta = 'src/devicemapper/thin/delta.ts'
const fingerprint = 'src/agent/catalog/fingerprint.ts'
const clocks = 'src/devicemapper/thin/base-record/pool-moment.ts'
const leases = 'src/agent/leases/metadata-snapshot-lease.ts'
const slots = 'src/agent/leases/recorded-slots.ts'
const recovery = 'src/agent/leases/lease-recovery.ts'
const holder = 'src/agent/leases/slot-holder.ts'
const verdicts = 'src/agent/catalog/lease.ts'

export const mutants: readonly Mutant[] = [
  {
    name: 'second-look',
    theme: 'twins',
    guard: 'handles are looked up again once the metadata is open',
    file: 'src/agent/answers/second-look.ts',
    from: 'if (!isDeepStrictEqual(compared(snapshot), compared(now[i]))) throw',
    to: 'if (compared(snapshot) === now) throw'
  },
  {
    name: 'one-look',
    theme: 'twins',
    guard: 'base and target are answered from one LVM report',
    unseen: 'not needed for an answer to be right (each name did mean what is answered); it spares LVM a report',
    file: 'src/agent/answers/sources.ts',
    from: 'lvm: new LvmLook(lvm, client),',
    to: 'lvm,'
  },
  {
    name: 'other-pool',
    coveredBy: ['other-metadata'],
    theme: 'twins',
    guard: 'snapshots of two pools are not compared',
    file: backend,
    from: 'if (poolOf(base) !== poolOf(target)) {',
    to: 'if (poolOf(base) === "") {'
  },
  {
    name: 'other-metadata',
    theme: 'twins',
    coveredBy: ['other-pool'],
    guard: 'base and target are in one metadata device',
    file: backend,
    from: 'if (!isDeepStrictEqual(base.metadataDevice, target.metadataDevice)) {',
    to: "if (base.handle === '') {"
  },
  {
    name: 'device-number',
    theme: 'twins',
    guard: "the open metadata device has the number in the pool's table",
    file: 'src/devicemapper/block-reader.ts',
    from: 'if (device) checkNumber(path, medium.device, device)',
    to: ''
  },
  {
    name: 'transaction-id',
    theme: 'catalog',
    guard: 'a device has the transaction id that LVM says',
    file: walk,
    from: 'if (transactionId !== undefined && device.details.transactionId !== transactionId) {',
    to: 'if (transactionId === -1n) {'
  },
  {
    name: 'volume-in-use',
    theme: 'volumes',
    guard: 'a volume in use is no target',
    file: walk,
    from: 'await refuseVolumeInUse(metadata, devices.target, signal)',
    to: ''
  },
  {
    name: 'before-each-message',
    theme: 'reuse',
    guard: 'the superblock is read again before each message',
    unseen:
      'a walk goes through the tree that was seen; it takes a node that is used again for as many mappings of the same range (commits-between-reads.test.ts fails without it)',
    file: metadata,
    from: '        await checkUnchanged()\n        if (next.done) return next.value',
    to: '        if (next.done) return next.value'
  },
  {
    name: 'tree-as-seen',
    theme: 'bases',
    guard: 'the walk begins where the tree began when the devices were looked at',
    coveredBy: ['fingerprint-of-the-catalog'],
    file: metadata,
    from: 'if (seen && this.#reader.isDevice) return { id, root: seen.root, details: seen }',
    to: ''
  },
  {
    name: 'fingerprint-of-the-catalog',
    theme: 'bases',
    guard: 'the answer is about the devices that were looked at before',
    coveredBy: ['tree-as-seen'],
    file: metadata,
    from: 'const expected = pinned.map(({ fingerprint }, i) => fingerprint ?? found[i])',
    to: 'const expected = await this.#fingerprints(devices)'
  },
  {
    name: 'damage-or-change',
    theme: 'reuse',
    guard: 'what looks damaged may be a node that was used again: first it is looked whether the devices changed',
    file: metadata,
    from: 'if (isDamage(error)) await checkUnchanged()',
    to: ''
  },
  {
    name: 'superblock-before-and-after',
    theme: 'reuse',
    guard: 'a look counts only if the superblock is the same before and after it',
    file: metadata,
    from: "const undisturbed = this.view === 'metadata-snapshot' || before.block.equals(after.block)",
    to: 'const undisturbed = true'
  },
  {
    name: 'root-moved',
    coveredBy: ['same-root', 'root-checksum'],
    theme: 'reuse',
    guard: "a device's root has to be where it was",
    file: metadata,
    from: 'if (found?.root !== device.root) throw this.#changed(device)',
    to: 'if (!found) throw this.#changed(device)'
  },
  {
    name: 'same-root',
    theme: 'reuse',
    coveredBy: ['root-moved', 'root-checksum'],
    guard: "a device's root is where it was when it was looked at before",
    file: metadata,
    from: 'one.root === other.root &&\n',
    to: '\n'
  },
  {
    name: 'root-checksum',
    theme: 'reuse',
    coveredBy: ['root-moved', 'same-root'],
    guard: "a device's root holds what it held when it was looked at before",
    file: metadata,
    from: '    one.rootChecksum === other.rootChecksum\n',
    to: '    true\n'
  },
  {
    name: 'own-block-number',
    theme: 'disks',
    guard: 'a block has to say that it is the one that was asked for',
    file: 'src/devicemapper/block-reader.ts',
    from: 'if (own !== block) throw',
    to: 'if (own === -1) throw'
  },
  {
    name: 'checksum',
    theme: 'disks',
    guard: "a block's checksum has to be right",
    file: 'src/devicemapper/block-reader.ts',
    from: "if (window.salt(i) !== salt) throw damaged(this.path, block, 'its checksum is wrong')",
    to: ''
  },
  {
    name: 'base-on-record',
    guard: 'a base is what it was when it was served',
    file: served,
    from: 'known = checkBase(records, base)',
    to: "known = 'unchanged'"
  },
  {
    name: 'mapped-blocks',
    guard: 'a base maps as many blocks as when it was served',
    file: fingerprint,
    from: 'if (recorded.mappedBlocks > now.mappedBlocks) {',
    to: 'if (recorded.mappedBlocks < 0) {'
  },
  {
    name: 'size-on-record',
    theme: 'sizes',
    guard: 'a base has the size that it had when it was served',
    file: fingerprint,
    from: 'if (recorded.sizeBytes !== now.sizeBytes) {',
    to: 'if (recorded.sizeBytes < 0) {'
  },
  {
    name: 'name-goes-to-another',
    guard: 'a name that meant another snapshot names no base',
    file: fingerprint,
    from: "    if (comparison.relation === 'replaced' && isElsewhere(each, now)) continue\n    const was",
    to: "    if (comparison.relation === 'replaced') continue\n    const was"
  },
  {
    name: 'pristine-base',
    guard: 'a base has no mapping as young as itself',
    file: walk,
    from: 'if (seen.base && !isMet) await checkUnwritten(metadata, seen.base, signal)',
    to: ''
  },
  {
    name: 'pristine-on-the-way',
    theme: 'bases',
    guard: 'the walk ends where it meets a mapping that is as young as the base',
    file: metadata,
    from: 'const takenAt = baseIsSnapshot ? device.details.creationTime : Infinity',
    to: 'const takenAt = baseIsSnapshot ? Infinity : Infinity'
  },
  {
    name: 'snapshotted-since',
    guard: 'what the base shares with a snapshot taken of it is looked through as well',
    file: walk,
    from: 'if (creationTime !== snapshottedTime) return false',
    to: 'if (creationTime > snapshottedTime) return false'
  },
  {
    name: 'behind-the-end',
    theme: 'bases',
    guard: "what the base maps behind the target's end is looked through as well",
    file: walk,
    from: 'return (await metadata.mappedEnd(base.device, signal)) <= walked',
    to: 'return (await metadata.mappedEnd(base.device, signal)) <= walked || walked > 0'
  },
  {
    name: 'before-the-offset',
    theme: 'bases',
    guard: 'what lies before the offset is looked through as well',
    file: walk,
    from: 'if (!base || base.device.id === target.device.id || startingOffset > 0) return false',
    to: 'if (!base || base.device.id === target.device.id) return false'
  },
  {
    name: 'base-is-target',
    guard: 'a base that is the target itself is looked through',
    file: walk,
    from: 'if (!base || base.device.id === target.device.id || startingOffset > 0) return false',
    to: 'if (!base || startingOffset > 0) return false'
  },
  {
    name: 'resumed-on-record',
    guard: 'an answer goes on only about the target that it was begun with',
    file: served,
    from: 'checkResumed(records, target)\n',
    to: '\n'
  },
  {
    name: 'resumed-pristine',
    theme: 'bases',
    guard: 'an answer goes on only about a target that was never written to',
    file: walk,
    from: 'if (seen.resumed) await checkResumable(metadata, seen.target, signal)',
    to: ''
  },
  {
    name: 'pool-went-back',
    theme: 'back',
    guard: 'a base that was served before its pool went back is refused',
    file: served,
    from: 'checkSinceWentBack(base.handle, records, wentBack)',
    to: ''
  },
  {
    name: 'clock-goes-back',
    coveredBy: ['transaction-goes-back'],
    theme: 'back',
    guard: 'a clock that is behind what was seen is noticed',
    file: clocks,
    from: 'if (now.time < before.time) return',
    to: 'if (now.time < 0) return'
  },
  {
    name: 'transaction-goes-back',
    theme: 'back',
    coveredBy: ['clock-goes-back'],
    guard: 'a transaction id that is behind what was seen is noticed',
    file: clocks,
    from: 'if (now.transactionId < before.transactionId) {',
    to: 'if (now.transactionId < 0n) {'
  },
  {
    name: 'devices-come-back',
    theme: 'back',
    guard: 'a device that was not there when the pool was seen last, and is older, is noticed',
    file: clocks,
    from: 'if (creationTime >= before.time && transactionId >= before.transactionId) continue',
    to: 'if (creationTime >= 0) continue'
  },
  {
    name: 'target-on-record',
    guard: 'a target is on record',
    file: served,
    from: "base, now, 'base')\n    rememberWithin(database, target, now, 'target')\n    if (base",
    to: "base, now, 'base')\n    if (base"
  },
  {
    name: 'on-record-before-the-message',
    theme: 'bases',
    guard: 'a target is on record before its first message',
    file: 'src/agent/answers/thin-snapshots.ts',
    from: 'keeping = await knowledge?.check(devices)',
    to: 'void knowledge?.check(devices).catch(() => undefined)'
  },
  {
    name: 'base-goes-on-record',
    theme: 'catalog',
    guard: 'what a base was goes on record',
    file: served,
    from: "if (base) rememberWithin(database, base, now, 'base')",
    to: ''
  },
  {
    name: 'beyond-the-base',
    theme: 'sizes',
    guard: "what lies beyond a smaller base's end counts as changed",
    file: metadata,
    from: 'base?.sizeBytes !== undefined && base.sizeBytes < capacityBytes',
    to: 'base?.sizeBytes === -1'
  },
  {
    name: 'beyond-the-base-shared-leaves',
    theme: 'sizes',
    guard: "nodes that reach beyond a smaller base's end are read though they are shared",
    file: delta,
    from: 'base.blocks[b] === target.blocks[t] && target.highs[t] <= baseEndBlock',
    to: 'base.blocks[b] === target.blocks[t]'
  },
  {
    name: 'beyond-the-base-same-root',
    theme: 'sizes',
    guard: 'one tree for both is no empty answer where the base is smaller',
    file: delta,
    from: 'if (baseRoot === targetRoot && baseEndBlock === Infinity) return',
    to: 'if (baseRoot === targetRoot) return'
  },
  {
    name: 'removed-blocks',
    guard: 'a block that only the base maps has changed',
    file: delta,
    from: 'extents.add(baseKey)',
    to: ''
  },
  {
    name: 'removed-blocks-at-the-end',
    guard: 'the same behind the last block that the target maps',
    file: delta,
    from: 'extents.add(base.keys[b])',
    to: ''
  },
  {
    name: 'shared-at-one-height',
    unseen:
      'takes trees of three levels, some 30,000 mapped blocks; `test/devicemapper/thin/delta.test.ts` fails without it',
    theme: 'trees',
    guard: 'trees of different heights are put level before what they share is dropped',
    file: delta,
    from: 'if (taller > 0) base.lower(taller)',
    to: 'if (taller > 9) base.lower(taller)'
  },
  {
    name: 'merged-size',
    theme: 'sizes',
    guard: 'an active device has the size and the id that LVM says',
    file: 'src/agent/answers/volume-group.ts',
    from: 'if (table.deviceId === thinId && sizeBytes === lv.sizeBytes) return !info.readOnly',
    to: 'if (table.deviceId >= 0) return !info.readOnly'
  },
  {
    name: 'lease-intent',
    world: 'leases',
    guard: 'that a lease is to be taken is on record before the kernel is told',
    file: slots,
    from: 'await this.#catalog.leases.begin({ device: key, purpose, factsBefore: poolFacts(live) }, takenAt)\n',
    to: '\n'
  },
  {
    name: 'lease-confirmed',
    world: 'leases',
    guard: 'what was reserved is on record before anybody uses it',
    file: slots,
    from: 'await this.#catalog.leases.confirm(key, { heldRoot, factsHeld: facts })',
    to: 'void this.#catalog.leases.confirm(key, { heldRoot, factsHeld: facts })'
  },
  {
    name: 'release-intent',
    world: 'leases',
    guard: 'that a lease is to be released is on record before the kernel is told',
    file: slots,
    from: 'await this.#catalog.leases.beginRelease(key)',
    to: ''
  },
  {
    name: 'release-note',
    world: 'leases',
    guard: 'a keeper that releases on its own notes that first',
    file: holder,
    from: '    await this.#place.writeNote()\n',
    to: '\n'
  },
  {
    name: 'note-is-read',
    world: 'leases',
    guard: "what a keeper has noted counts as much as the agent's record",
    file: slots,
    from: 'await this.#keepers.withNote(record, this.#catalog.path)',
    to: 'record'
  },
  {
    name: 'look-before-release',
    world: 'leases',
    guard: 'a keeper looks whether it is still its own before it releases',
    file: holder,
    from: 'if (now.heldRoot !== this.#ours.heldRoot || now.facts !== this.#ours.facts) {',
    to: 'if (now.heldRoot < 0) {'
  },
  {
    name: 'held-block',
    coveredBy: ['look-before-release'],
    world: 'leases',
    guard: 'a metadata snapshot in another block is not ours',
    file: verdicts,
    from: 'return record.heldRoot === heldRoot && (facts',
    to: 'return (facts'
  },
  {
    name: 'held-content',
    coveredBy: ['look-before-release'],
    world: 'leases',
    guard: 'a metadata snapshot with another content is not ours',
    file: verdicts,
    from: 'record.heldRoot === heldRoot && (facts === undefined || record.factsHeld === facts)',
    to: 'record.heldRoot === heldRoot'
  },
  {
    name: 'releasing-is-ambiguous',
    world: 'leases',
    guard: 'what was being released is not taken for ours',
    file: verdicts,
    from: "return ambiguous('a crash came while it was being released, or another program took it afterwards')",
    to: "return { whose: 'ours', ambiguous: false, record: 'keep', because: '' }"
  },
  {
    name: 'keeper-let-go',
    world: 'leases',
    guard: 'a keeper releases what it holds when its agent is gone',
    file: holder,
    from: 'if (this.#ours === undefined) return\n    await this.#place.writeNote()',
    to: 'if (this.#ours !== undefined) return\n    await this.#place.writeNote()'
  },
  {
    name: 'lease-time',
    world: 'leases',
    guard: 'a lease ends when its time is up',
    file: leases,
    from: 'this.#clock.after(holdMs, () => {',
    to: 'this.#clock.after(holdMs * 1000, () => {'
  },
  {
    name: 'lease-watched',
    world: 'leases',
    guard: 'a lease ends when somebody else has released it',
    file: leases,
    from: 'if (status.heldRoot !== lease.heldRoot)',
    to: 'if (status.heldRoot === -1)'
  },
  {
    name: 'headroom',
    world: 'leases',
    guard: 'no lease is taken where free metadata is scarce',
    file: 'src/agent/leases/pool-slot.ts',
    from: 'if (free >= wanted) return',
    to: 'if (free >= 0) return'
  },
  {
    name: 'left-behind-is-settled',
    world: 'leases',
    guard: 'an agent gives back what the one before has left',
    file: slots,
    from: "if (verdict.whose === 'ours' && record.heldRoot !== undefined",
    to: "if (verdict.whose === 'none' && record.heldRoot !== undefined"
  },
  {
    name: 'keeper-dead-adopted',
    world: 'leases',
    guard: 'what a dead keeper has left is taken over to be released',
    file: slots,
    from: 'await keeper.adopt(held.heldRoot, held.facts)\n      }\n',
    to: '\n      }\n'
  },
  {
    name: 'try-again-later',
    world: 'leases',
    guard: 'what could not be settled is tried again',
    file: recovery,
    from: 'this.#retry = this.#parts.clock.after(this.#parts.retryMs, () => void this.recover(), true)',
    to: ''
  },
  ...eraMutants,
  ...ownedMutants
]
