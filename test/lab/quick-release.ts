/**
 * The release that kernel tests run on, because its kernel starts processes quickest: forky's, if it can be had and its kernel comes up with
 * what the tests need; else trixie's (docs/decisions/0023-kernel-of-the-tests-again.md).
 *
 * `node test/lab/quick-release.ts` prints its name: how scripts/test.mjs chooses. It prints nothing where neither can be had.
 */
import { LabFailure, runInLab } from './boot.ts'
import { LabUnavailable } from './packages.ts'
import type { LabRelease } from './releases.ts'

const needed = ['dm-thin-pool', 'dm-era', 'dm-snapshot', 'loop', 'ext4']
const command = [
  'bash',
  '-ec',
  `for each in ${needed.join(' ')}; do /run/modprobe "$each"; done; lvm version; dmsetup targets`
]

async function works(release: LabRelease): Promise<boolean> {
  try {
    return (await runInLab({ release, command, timeoutSeconds: 600 })).status === 0
  } catch (error) {
    if (!(error instanceof LabUnavailable) && !(error instanceof LabFailure)) throw error
    console.error(error.message)
    return false
  }
}

const release = (await works('forky')) ? 'forky' : (await works('trixie')) ? 'trixie' : undefined
if (release !== undefined) console.log(release)
