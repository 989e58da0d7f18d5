/**
 * Names of volumes that LVM reserves. LVM refuses them when lvcreate runs, but then a volume has been suspended already
 * for that snapshot.
 *
 * From apply_lvname_restrictions in LVM's lib/misc/lvm-string.c, as of 2.03.16; earlier versions have fewer of them.
 */
import { invalid } from '../../errors.ts'

const PREFIXES = ['pvmove', 'snapshot']
const PARTS = [
  ...['_cdata', '_cmeta', '_corig', '_cpool', '_cvol', '_wcorig', '_mimage', '_mlog', '_rimage', '_rmeta', '_tdata'],
  ...['_tmeta', '_vdata', '_imeta', '_iorig', '_pmspare', '_vorigin']
]

/** @param name of a new volume or snapshot @throws DM_ARGUMENT_INVALID */
export function refuseReservedName(name: string): void {
  const prefix = PREFIXES.find((each) => name.startsWith(each))
  const part = PARTS.find((each) => name.includes(each))
  if (prefix === undefined && part === undefined) return
  throw invalid(
    `LVM takes no name ${prefix === undefined ? `with ${part} in it` : `that begins with ${prefix}`}, such as ${name}`,
    'choose another name'
  )
}
