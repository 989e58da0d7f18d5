/**
 * What the operating system refuses (errno), as whoever meets it can act on it. Node's own text ("EMFILE: too many open
 * files, open …") says which call failed, and neither what to do nor who can.
 */

/**
 * What to do about an error of the system.
 *
 * @param right that is needed, as it completes "give user 1000 …"
 * @returns undefined where the caller knows more than the error number does (ENOENT, EBUSY, EINVAL …)
 */
export function systemRemedy(thrown: unknown, right = 'read access to it'): string | undefined {
  const { code, syscall = '' } = (thrown ?? {}) as NodeJS.ErrnoException
  if (code === 'EACCES' || code === 'EPERM') return remedyForMissingRight(right)
  // Of anything else it says that there is nothing to be had yet.
  if (code === 'EAGAIN' && !syscall.startsWith('spawn')) return undefined
  return code === undefined ? undefined : remedies[code]
}

/** Whether the system itself, asked for something, had no memory, processes or descriptors left. */
export function isExhausted(thrown: unknown): boolean {
  return exhaustion.includes((thrown as NodeJS.ErrnoException | undefined)?.code ?? '')
}

/** fork(2), pipe(2), open(2). */
const exhaustion = ['EMFILE', 'ENFILE', 'ENOMEM', 'EAGAIN']

const tooFewProcesses =
  'raise how many processes and threads may run (TasksMax= of the unit, pids of the pod, ulimit -u), and ask again'
const outOfMemory = 'see what uses the memory (the unit or pod may have a limit of its own), and ask again'

const remedies: Readonly<Record<string, string>> = {
  EMFILE: 'raise how many files this process may open (LimitNOFILE= of the unit, ulimit -n), and ask again',
  ENFILE: 'raise how many files the machine may have open (sysctl fs.file-max), and ask again',
  ENOMEM: outOfMemory,
  EAGAIN: tooFewProcesses,
  // Node's words for a thread that could not be started, or that has used up what it may.
  ERR_WORKER_INIT_FAILED: tooFewProcesses,
  ERR_WORKER_OUT_OF_MEMORY: outOfMemory,
  ENOSPC: 'make room on that file system (df, and df -i for its inodes)',
  EDQUOT: 'raise the quota of its owner, or make room within it (quota)',
  EROFS:
    'that file system is read-only: mount it for writing (after a look into the kernel log), or name another place',
  EIO: 'look into the kernel log for errors of the disk below'
}

function remedyForMissingRight(right: string): string {
  const user = process.geteuid?.()
  return user === 0
    ? `root itself is refused ${right}: see the sandbox of the unit or container, SELinux or AppArmor (dmesg), and its capabilities`
    : `run as root, or give user ${user} ${right}, and the right to enter its folders`
}
