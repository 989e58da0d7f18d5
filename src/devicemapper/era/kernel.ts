/**
 * Which kernels lose writes of an era. Until Linux 5.12, a machine that crashes forgets what was written in the era
 * that was current ("dm era: Recover committed writeset after crash", upstream de89afc1e40f), and nothing in the
 * metadata tells.
 */

/** @param release as in `uname -r`; a release that is not understood counts as too old */
export function losesEras(release: string): boolean {
  const [, major, minor] = /^(\d+)\.(\d+)/.exec(release) ?? []
  if (major === undefined || minor === undefined) return true
  return Number(major) < 5 || (Number(major) === 5 && Number(minor) < 12)
}
