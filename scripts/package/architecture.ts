/**
 * The processors that packages and images are made for, by Debian's names, and what npm and OCI call them.
 */
import { arch } from 'node:os'

export const architectures = ['amd64', 'arm64'] as const
export type Architecture = (typeof architectures)[number]

const npmNames: Readonly<Record<Architecture, string>> = { amd64: 'x64', arm64: 'arm64' }

export const npmName = (architecture: Architecture): string => npmNames[architecture]

/** This machine's. @throws Error where it has none of them */
export function ownArchitecture(): Architecture {
  const own = architectures.find((each) => npmNames[each] === arch())
  if (own === undefined) throw new Error(`packages are made for ${architectures.join(' and ')}, and this is ${arch()}`)
  return own
}
