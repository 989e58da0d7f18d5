/** What `deltamapper nbd` may be told. Sizes in bytes. */
import type { TlsOptions } from '../command-line/endpoint.ts'

export interface NbdOptions extends TlsOptions {
  base?: string[]
  endpoint?: string
  device?: string
  activate?: boolean
  metadata?: string
  data?: string
  size?: number
  baseSize?: number
  liveRoot?: boolean
  recorded?: Record<string, string>
  socket?: string
  socketMode?: number
  run?: string
  /** Bytes a second. */
  rate?: number
  list?: boolean
}
