import test from 'ava'
import { lookAtLvm, type LvmPort, splitLvmName } from '../../../src/agent/inventory/lvm-facts.ts'
import { type LogicalVolume, parseVolumeGroups } from '../../../src/agent/lvm/parse.ts'
import { DeltamapperError } from '../../../src/errors.ts'
import { recordedReports, recordedVolumes } from '../../support/recorded-lvm.ts'

const groups = parseVolumeGroups(recordedReports('group')[0].text)
const recorded: LvmPort = {
  volumeGroups: async () => groups,
  logicalVolumes: async () => recordedVolumes('volumes')
}

test('groups, and what is in no thin pool', async (t) => {
  const { facts, volumes } = await lookAtLvm(recorded, ['nsenter', '-t', '1', 'lvm'], true, 1000)
  t.is(facts.command, 'nsenter -t 1 lvm')
  t.is(facts.problem, undefined)
  t.deepEqual(
    facts.groups.map(({ name, problem }) => [name, problem]),
    groups.map(({ name }) => [name, undefined])
  )
  const [{ untracked, sizeBytes, freeBytes }] = facts.groups
  t.false(untracked.includes('my-vg/thick-cow'))
  t.true(untracked.includes('my-vg/raid'))
  t.false(
    untracked.some((each) => /monday|po-ol|tmeta|tdata/.test(each)),
    untracked.join()
  )
  t.true(freeBytes >= 0 && freeBytes < sizeBytes)
  t.true(volumes[0].has('monday'))
})

test('no answer, one group without an answer, and a report that contradicts itself', async (t) => {
  const failing = () => Promise.reject(new DeltamapperError('DM_LVM_FAILED', 'no', 'ask again'))
  const none = await lookAtLvm({ ...recorded, volumeGroups: failing }, ['lvm'], true, 1000)
  t.like(none.facts, { groups: [], inUse: true, problem: { code: 'DM_LVM_FAILED' } })
  const two: LvmPort = {
    volumeGroups: async () => [...groups, { ...groups[0], name: 'broken' }, { ...groups[0], name: 'torn' }],
    logicalVolumes: async (name) => {
      if (name === 'broken') return failing()
      // (Every origin is another one than it was.)
      const torn = (each: LogicalVolume) => ({ ...each, originUuid: each.origin && 'another' })
      return recordedVolumes('volumes').map((each) => (name === 'torn' ? torn(each) : each))
    }
  }
  const { facts, volumes } = await lookAtLvm(two, ['lvm'], true, 1000)
  t.deepEqual(
    facts.groups.map(({ name, problem }) => [name, problem?.code]),
    [
      [groups[0].name, undefined],
      ['broken', 'DM_LVM_FAILED'],
      ['torn', 'DM_LVM_FAILED']
    ]
  )
  t.is(volumes.length, 1)
})

test("names of LVM's, out of device-mapper's", (t) => {
  t.deepEqual(splitLvmName('vg0-data'), { group: 'vg0', volume: 'data' })
  t.deepEqual(splitLvmName('vg0-pool-tpool'), { group: 'vg0', volume: 'pool' })
  t.deepEqual(splitLvmName('my--vg-po--ol_tmeta'), { group: 'my-vg', volume: 'po-ol_tmeta' })
  t.deepEqual(splitLvmName('strange'), { group: 'strange', volume: '' })
})
