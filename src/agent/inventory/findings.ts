/**
 * Findings from the facts of a node: problems, future problems, and notes, each with its remedy. Facts in, findings
 * out; this file looks at nothing itself.
 */
import { MAX_HANDLE_BYTES } from '../../handle.ts'
import type {
  CatalogFacts,
  DeviceMapperFacts,
  EraHistoryFacts,
  Examination,
  Finding,
  LvmFacts,
  MetadataSnapshotFacts,
  PoolFacts,
  Problem,
  Severity,
  TrackedVolumeFacts,
  VolumeGroupFacts
} from './examination.ts'

/** The facts that findings are made of. */
export type ExaminationFacts = Omit<Examination, 'findings'>

/** The oldest kernel whose status lines and ioctls are understood. */
const OLDEST_KERNEL = [3, 19] as const
/** Percent of a pool in use from which there is a warning. */
const NEARLY_FULL = 80
/** The most names that one finding lists. */
const MOST_NAMED = 5

const order: Record<Severity, number> = { problem: 0, warning: 1, note: 2 }

/** The worst first, otherwise in the order in which the parts depend on each other. */
export function findings(facts: ExaminationFacts): Finding[] {
  const found = [
    ...aboutKernel(facts),
    ...(facts.live ? aboutDeviceMapper(facts.deviceMapper) : []),
    ...(facts.live ? aboutLvm(facts.lvm) : []),
    ...aboutCatalog(facts.catalog),
    ...facts.catalog.eraHistories.flatMap(aboutHistory),
    ...facts.trackedVolumes.flatMap(aboutTracked),
    ...facts.pools.flatMap(aboutPool),
    ...(facts.live ? aboutHavingPools(facts) : [recordedOnly(facts)]),
    ...aboutNode(facts)
  ]
  return inOrder(found)
}

/** The worst first. */
export function inOrder(found: readonly Finding[]): Finding[] {
  return [...found].sort((one, other) => order[one.severity] - order[other.severity])
}

function finding(severity: Severity, kind: string, about: string, what: string, remedy: string, command = ''): Finding {
  return { severity, kind, about, what, remedy, command }
}

/** A part that could not be inspected. */
function failed(severity: Severity, kind: string, about: string, { message, remedy }: Problem): Finding {
  return finding(severity, kind, about, message, remedy)
}

function aboutKernel({ node: { kernel } }: ExaminationFacts): Finding[] {
  const [major = 0, minor = 0] = kernel.split('.').map((each) => parseInt(each, 10))
  const [oldestMajor, oldestMinor] = OLDEST_KERNEL
  if (Number.isNaN(major) || major > oldestMajor || (major === oldestMajor && minor >= oldestMinor)) return []
  return [
    finding(
      'problem',
      'kernel-old',
      'kernel',
      `Linux ${kernel} is older than ${OLDEST_KERNEL.join('.')}, from which on thin pools are understood`,
      'run a newer kernel'
    )
  ]
}

function aboutDeviceMapper({ problem, suspended, targets }: DeviceMapperFacts): Finding[] {
  if (problem) return [failed('problem', 'device-mapper-unusable', 'device-mapper', problem)]
  const found = suspended.map((name) =>
    finding(
      'warning',
      'device-suspended',
      name,
      `${name} is suspended: everything that uses it waits`,
      'that is normal for the moment in which a snapshot is taken; if it lasts, find out who suspended it, and resume it',
      `dmsetup resume ${name}`
    )
  )
  if (!targets.some(({ name }) => name === 'thin-pool')) {
    found.push(
      finding(
        'note',
        'thin-target-not-loaded',
        'kernel',
        'the kernel has not loaded its thin-pool target',
        'do nothing if there are no thin pools: it is loaded with the first one',
        'modprobe dm-thin-pool'
      )
    )
  }
  return found
}

function aboutLvm({ problem, inUse, command, groups }: LvmFacts): Finding[] {
  if (problem && inUse) return [failed('problem', 'lvm-silent', 'LVM', problem)]
  if (problem) {
    return [
      finding(
        'note',
        'lvm-silent',
        'LVM',
        `LVM does not answer (${problem.message}), and no device of its is active`,
        `do nothing if this node has no volume groups; else install lvm2, or set \`lvmCommand\` (now ${command})`
      )
    ]
  }
  return groups.flatMap(aboutGroup)
}

function aboutGroup({ name, problem, missingDisks, untracked }: VolumeGroupFacts): Finding[] {
  const found: Finding[] = []
  if (problem) found.push(failed('problem', 'group-unreadable', name, problem))
  if (missingDisks > 0) {
    found.push(
      finding(
        'warning',
        'group-partial',
        name,
        `${missingDisks} of the disks of volume group ${name} ${missingDisks === 1 ? 'is' : 'are'} missing`,
        'find the disks; `pvs` and `vgs -o +vg_missing_pv_count` show which'
      )
    )
  }
  if (untracked.length > 0) {
    found.push(
      finding(
        'note',
        'volumes-untracked',
        name,
        `${listed(untracked)} ${untracked.length === 1 ? 'is' : 'are'} in no thin pool: changed blocks cannot be told`,
        'take classic snapshots of them (lvcreate -s -L), of which changed blocks can be told; or have dm-era track them (deltamapper era attach), or move them into a thin pool (lvconvert --type thin)'
      )
    )
  }
  return found
}

function aboutCatalog({ problem, disagreements, consulted, path }: CatalogFacts): Finding[] {
  const found = disagreements.map(({ kind, pool, what, remedy }) =>
    finding(
      kind === 'thin-unknown' || kind === 'intent-waits' ? 'warning' : 'problem',
      `catalog-${kind}`,
      pool,
      what,
      remedy
    )
  )
  if (problem) found.unshift(failed('problem', 'catalog-unusable', path, problem))
  else if (!consulted && path !== '') {
    found.push(
      finding(
        'note',
        'catalog-not-consulted',
        path,
        'the catalog was not looked into: which snapshots can serve as base, and whose metadata snapshots are, is not known',
        'ask the agent: it has the catalog open'
      )
    )
  }
  return found
}

function aboutHistory({ volume, earlierHistories, because, supersets }: EraHistoryFacts): Finding[] {
  const found: Finding[] = []
  if (earlierHistories > 0) {
    found.push(
      finding(
        'warning',
        'history-broken',
        volume,
        `the history of ${volume} was broken off (${because}): its snapshots from before cannot be compared with later ones`,
        'take a full backup of a later one, if there was none since'
      )
    )
  }
  if (supersets > 0) {
    found.push(
      finding(
        'note',
        'history-superset',
        volume,
        `for ${supersets} of the snapshots of ${volume}, more blocks may be recorded than were written: the agent was interrupted when they were taken`,
        'nothing is missing: a backup copies more than it would have to, once'
      )
    )
  }
  return found
}

function aboutTracked(volume: TrackedVolumeFacts): Finding[] {
  const { name, deviceName, active, problem, underWay } = volume
  if (!active) {
    const what = `tracked volume ${name} is not active: it cannot be used, and writes to its data device are not tracked`
    const command = `deltamapper era activate ${name}`
    return [finding('problem', 'tracked-inactive', name, what, 'activate it', command)]
  }
  const found: Finding[] = []
  const { metadataUsedBytes: used = 0, metadataTotalBytes: total = 0, heldMetadataSnapshot, heldByUs } = volume
  if (used * 100 >= total * NEARLY_FULL && total > 0) {
    const what = `${Math.floor((100 * used) / total)} % of the metadata of tracked volume ${name} is used; when it is full, writes fail`
    const remedy =
      'detach it and attach it again with a larger metadata device, and take a full backup: the size is fixed when it is attached'
    found.push(finding('warning', 'tracked-metadata-nearly-full', name, what, remedy))
  } else if (problem !== '') {
    const remedy =
      '`deltamapper era status` shows more; docs/tracked-volumes.md, "When a new history begins", says what to do'
    found.push(finding('problem', 'tracked-problem', name, `tracked volume ${name}: ${problem}`, remedy))
  }
  if (heldMetadataSnapshot !== undefined && !heldByUs) {
    const what = `tracked volume ${name} holds a metadata snapshot (block ${heldMetadataSnapshot}) that is not ours: no snapshot of it can be taken`
    const remedy = 'find the tool that took it (era_dump, era_invalidate); only if none runs any more, drop it'
    const command = `dmsetup message ${deviceName} 0 drop_metadata_snap`
    found.push(finding('warning', 'tracked-metadata-snapshot-foreign', name, what, remedy, command))
  }
  if (underWay !== '') {
    const what = `a change of tracked volume ${name} is not finished: ${underWay}`
    const remedy = 'that is normal while it runs; what was interrupted is recovered when the volume is used next'
    found.push(finding('note', 'tracked-under-way', name, what, remedy))
  }
  return found
}

function aboutPool(pool: PoolFacts): Finding[] {
  return [
    ...aboutState(pool),
    ...aboutFullness(pool),
    ...unreadable(pool),
    ...aboutNames(pool),
    ...(pool.metadataSnapshot ? aboutMetadataSnapshot(pool, pool.metadataSnapshot) : []),
    ...aboutThins(pool)
  ]
}

/** Stratis' pools and file systems have names of some 80 bytes each: two of them are no handle. */
function aboutNames({ name, kind, thins }: PoolFacts): Finding[] {
  const tooLong = thins.filter(({ handle }) => Buffer.byteLength(handle) > MAX_HANDLE_BYTES)
  // Room for a slash and one letter.
  const none = kind === 'plain' && Buffer.byteLength(name) > MAX_HANDLE_BYTES - 2
  if (tooLong.length === 0 && !none) return []
  const which = none ? 'nothing in it' : `${tooLong.length} of its ${thins.length} volumes and snapshots`
  const what = `pool ${name}: handles have at most ${MAX_HANDLE_BYTES} bytes, so that ${which} can${none ? '' : 'not'} be asked for`
  return [
    finding(
      'warning',
      'names-too-long',
      name,
      what,
      'back up every block, or compare by thin ids with `deltamapper delta --metadata DEVICE`'
    )
  ]
}

/** Expected of a failed pool. */
function unreadable({ name, state, problem }: PoolFacts): Finding[] {
  if (problem === undefined || state === 'failed') return []
  return [finding('problem', 'pool-unreadable', name, `pool ${name}: ${problem.message}`, problem.remedy)]
}

function aboutState({ name, kind, state, needsCheck }: PoolFacts): Finding[] {
  const repair =
    'find out why in the kernel log; `thin_check` and `thin_repair` (LVM: lvconvert --repair) are for its metadata'
  switch (state) {
    case 'inactive': {
      const command = kind === 'own' ? `deltamapper pool activate ${name}` : `lvchange -ay -K ${name}`
      const what = `pool ${name} is not active, so its snapshots cannot be served`
      return [
        finding('problem', 'pool-inactive', name, what, 'activate it; the agent activates nothing by itself', command)
      ]
    }
    case 'failed':
      return [finding('problem', 'pool-failed', name, `pool ${name} has failed`, repair)]
    case 'read-only': {
      const why = needsCheck ? 'its metadata needs to be checked' : 'its metadata is full, or it was made read-only'
      return [
        finding(
          'problem',
          needsCheck ? 'pool-needs-check' : 'pool-read-only',
          name,
          `pool ${name} is read-only: ${why}; what is in it can be read, and no snapshot can be taken`,
          needsCheck ? repair : 'extend its metadata (LVM: lvextend --poolmetadatasize)'
        )
      ]
    }
    case 'out-of-data-space':
      return [
        finding(
          'problem',
          'pool-full',
          name,
          `pool ${name} is out of data space: writes to it fail or wait`,
          'extend its data (LVM: lvextend), or delete or trim what is in it'
        )
      ]
    case 'unknown':
      return [
        finding(
          'warning',
          'pool-state-unknown',
          name,
          `the state of pool ${name} is not known`,
          'look into the kernel log'
        )
      ]
    case 'read-write':
      if (!needsCheck) return []
      return [finding('problem', 'pool-needs-check', name, `the metadata of pool ${name} needs to be checked`, repair)]
  }
}

function aboutFullness({ name, state, usage }: PoolFacts): Finding[] {
  if (usage === undefined || state === 'out-of-data-space') return []
  const percent = (used: number, total: number) => (total === 0 ? 0 : Math.floor((100 * used) / total))
  const data = percent(usage.dataUsedBytes, usage.dataTotalBytes)
  const metadata = percent(usage.metadataUsedBytes, usage.metadataTotalBytes)
  const found: Finding[] = []
  if (metadata >= NEARLY_FULL) {
    found.push(
      finding(
        'warning',
        'metadata-nearly-full',
        name,
        `${metadata} % of the metadata of pool ${name} is used; without any, it takes no writes and may need a repair`,
        'extend its metadata (LVM: lvextend --poolmetadatasize)'
      )
    )
  }
  if (data >= NEARLY_FULL) {
    found.push(
      finding(
        'warning',
        'data-nearly-full',
        name,
        `${data} % of the data of pool ${name} is used`,
        'extend its data (LVM: lvextend), or delete or trim what is in it'
      )
    )
  }
  return found
}

function aboutMetadataSnapshot({ name, deviceName }: PoolFacts, snapshot: MetadataSnapshotFacts): Finding[] {
  const { block, whose, ambiguous, because, users, snapshotsSince } = snapshot
  const age = snapshotsSince === undefined ? '' : `, ${snapshotsSince} of the pool's snapshots old`
  const held = `pool ${name} holds a metadata snapshot (block ${block}${age})`
  const release = `dmsetup message ${deviceName} 0 release_metadata_snap`
  if (whose === 'ours' && users.length > 0) {
    return [
      finding(
        'note',
        'metadata-snapshot-ours',
        name,
        `${held}: it is ours, for ${users.join(', ')}`,
        'no action is needed: it is released when its users are done, or when its time is up'
      )
    ]
  }
  if (whose === 'ours') {
    return [
      finding(
        'warning',
        'metadata-snapshot-left-behind',
        name,
        `${held}: it is ours, and nobody uses it (${because})`,
        'the agent tries to release it from time to time; its log says why it could not'
      )
    ]
  }
  const whoseIsIt =
    whose === 'unknown' ? because : ambiguous ? `nothing proves that it is ours, but it may be (${because})` : because
  return [
    finding(
      'warning',
      ambiguous ? 'metadata-snapshot-ambiguous' : `metadata-snapshot-${whose}`,
      name,
      `${held}: ${whoseIsIt}. Held, it makes metadata grow, and keeps discarded data`,
      'find the tool that took it (thin_delta, thin_dump, a backup); only if none runs any more, release it',
      release
    )
  ]
}

function aboutThins({ name, thins, unnamedDevices = 0, kind }: PoolFacts): Finding[] {
  const found: Finding[] = []
  const changed = thins.filter(({ asBase }) => asBase === 'changed').map(({ handle }) => handle)
  if (changed.length > 0) {
    found.push(
      finding(
        'warning',
        'base-changed',
        name,
        `${listed(changed)} can no longer be a base: written to, trimmed, resized, replaced, or its pool restored to an earlier state since`,
        'take a full backup next; keep snapshots that are backed up read-only, and away from fstrim'
      )
    )
  }
  const unrecorded = thins.filter(({ asBase }) => asBase === 'unrecorded').map(({ handle }) => handle)
  if (unrecorded.length > 0) {
    found.push(
      finding(
        'warning',
        'base-unrecorded',
        name,
        `${listed(unrecorded)} served as base without ever having been served: nothing proves that it was not trimmed before`,
        'take full backups through this agent; `strictBases: true` in its configuration refuses such bases'
      )
    )
  }
  const strange = thins.filter(({ asBase, because }) => asBase === 'not-trackable' && because !== '')
  for (const { handle, because } of strange.slice(0, MOST_NAMED)) {
    found.push(finding('note', 'thin-not-trackable', handle, `${handle}: ${because}`, 'back it up in full'))
  }
  if (unnamedDevices > 0) {
    const what = `${unnamedDevices} thin device${unnamedDevices === 1 ? '' : 's'} of pool ${name}`
    found.push(
      finding(
        'note',
        'thins-unnamed',
        name,
        kind === 'plain'
          ? `${what} ${unnamedDevices === 1 ? 'is' : 'are'} not active: without a device, size and name are known nowhere`
          : `${what} ${unnamedDevices === 1 ? 'has' : 'have'} no name here`,
        kind === 'plain'
          ? 'activate the snapshots to serve (dmsetup create … --readonly)'
          : '`deltamapper inspect` lists what is in the metadata'
      )
    )
  }
  return found
}

function aboutHavingPools({ pools, deviceMapper, lvm }: ExaminationFacts): Finding[] {
  if (pools.length > 0 || deviceMapper.problem || (lvm.problem && lvm.inUse)) return []
  return [
    finding(
      'note',
      'no-pools',
      'pools',
      'there is no thin pool on this node',
      'make one: lvcreate --type thin-pool, dmsetup create, or `deltamapper pool create`'
    )
  ]
}

function recordedOnly({ recordedPools }: ExaminationFacts): Finding {
  return finding(
    'note',
    'recorded-only',
    'agent',
    `this agent serves recorded pools only (${listed(recordedPools.map(({ name }) => name))}): the node's own were not looked at`,
    'set `live: true` in its configuration to serve both'
  )
}

function aboutNode({ node, blockDevices }: ExaminationFacts): Finding[] {
  return [
    ...(node.problem ? [failed('note', 'node-unknown', 'node', node.problem)] : []),
    ...(blockDevices.problem ? [failed('note', 'block-devices-unknown', 'block devices', blockDevices.problem)] : [])
  ]
}

/** A few names, and how many more there are. */
function listed(names: readonly string[]): string {
  if (names.length <= MOST_NAMED) return names.join(', ')
  return `${names.slice(0, MOST_NAMED - 1).join(', ')} and ${names.length - MOST_NAMED + 1} more`
}
