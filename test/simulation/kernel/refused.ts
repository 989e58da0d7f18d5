/** An errno by which the simulated kernel refuses. */
export class Refused extends Error {
  readonly errno: 'EEXIST' | 'ENODATA' | 'EINVAL' | 'EBUSY' | 'EOPNOTSUPP' | 'ENOSPC' | 'ENXIO' | 'EIO'

  constructor(errno: Refused['errno'], what: string) {
    super(`${errno}: ${what}`)
    this.errno = errno
  }
}
