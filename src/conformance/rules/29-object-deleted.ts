/**
 * The driver sees no objects, only handles: without a cluster, nothing of it can be seen.
 * Source: KEP-3314; Velero with deletionPolicy Retain
 */
import { skip, type Rule } from '../rule.ts'

export const rule: Rule = {
  number: 29,
  level: 'must',
  title: 'a delta works after the VolumeSnapshot of its base was deleted, where the storage keeps it',
  source: 'KEP-3314; Velero with deletionPolicy Retain',
  judge: () =>
    skip(
      'it takes a Kubernetes cluster with the driver: delete the VolumeSnapshot of a base with deletionPolicy Retain, and ask by handle'
    )
}
