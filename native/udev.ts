/**
 * Who makes the device nodes under /dev/mapper, and how to know that they are made.
 *
 * If udevd runs, its rules own the links there, and a node made beside them is in their way. When a call is done, udevd
 * may still be at work. libdevmapper's answer is the cookie: a System V semaphore whose number travels with the
 * kernel's event, and which `dmsetup udevcomplete`, run by udevd's rules, counts down. That only works if udevd and
 * this process see the same semaphores: in a container with an IPC namespace of its own, the count never reaches zero,
 * and the waiter hangs for ever. So:
 *
 *   synchronised    udevd runs, same IPC namespace: cookies, waited for with a limit
 *   unsynchronised  udevd runs, another IPC namespace: no cookies; udevd makes the nodes, and we watch for them
 *   library         no visible udevd: libdevmapper makes the nodes, and an invisible udevd is told to leave them alone
 */
import { accessSync, readlinkSync } from 'node:fs'

export type NodeKeeper = 'synchronised' | 'unsynchronised' | 'library'

export interface Surroundings {
  /** `/run/udev/control` exists: udevd listens there, and a container that shares it was given it on purpose. */
  readonly udevControl: boolean
  /** Where `/proc/self/ns/ipc` points to, such as `ipc:[4026531839]`. */
  readonly ipcNamespace: string
  /** DM_DISABLE_UDEV, libdevmapper's own switch, is set in the environment (to anything). */
  readonly udevDisabled: boolean
  readonly devDirectory: string
}

/**
 * The first IPC namespace, the one udevd lives in, has a number fixed in the kernel (PROC_IPC_INIT_INO in
 * linux/proc_ns.h).
 */
const initialIpcNamespace = 'ipc:[4026531839]'

export function nodeKeeper({ udevControl, ipcNamespace, udevDisabled, devDirectory }: Surroundings): NodeKeeper {
  // udevd serves /dev and no other folder.
  if (udevDisabled || !udevControl || devDirectory !== '/dev') return 'library'
  return ipcNamespace === initialIpcNamespace ? 'synchronised' : 'unsynchronised'
}

/** Checks now: udevd may have been started or stopped since the last call. */
export function surroundings(devDirectory: string): Surroundings {
  return {
    udevControl: succeeds(() => accessSync('/run/udev/control')),
    ipcNamespace: succeeds(() => readlinkSync('/proc/self/ns/ipc')) ? readlinkSync('/proc/self/ns/ipc') : '',
    udevDisabled: process.env.DM_DISABLE_UDEV !== undefined,
    devDirectory
  }
}

function succeeds(action: () => unknown): boolean {
  try {
    action()
    return true
  } catch {
    return false
  }
}
