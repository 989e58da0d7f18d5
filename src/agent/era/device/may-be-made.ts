/** What is asked before devices of a tracked volume are made: whether the kernel is fit, and the names are free. */
import { release } from 'node:os'
import type { DeviceMapper } from '../../../../native/device-mapper.ts'
import { losesEras } from '../../../devicemapper/era/kernel.ts'
import { DeltamapperError } from '../../../errors.ts'
import { deviceNameTaken } from '../../catalog/name-taken.ts'
import { guardName } from '../../node/era-devices.ts'

/** @throws DM_KERNEL_LOSSY, unless the operator has said that this kernel has the mends */
export function refuseLossyKernel(allowed: boolean): void {
  if (allowed || !losesEras(release())) return
  throw new DeltamapperError(
    'DM_KERNEL_LOSSY',
    `Linux ${release()} forgets what was written in the current era when it crashes, and nothing shows it`,
    'update to Linux 5.12 or later; where your kernel has the dm-era fixes of March 2021, attach with --allow-lossy-kernel'
  )
}

/** @throws DM_NAME_TAKEN if the era device or its guard would have the name of another device */
export async function refuseTakenNames(deviceMapper: DeviceMapper, volume: { readonly dmName: string }): Promise<void> {
  for (const each of [volume.dmName, guardName(volume)]) {
    if (await deviceMapper.info(each)) throw deviceNameTaken(each)
  }
}
