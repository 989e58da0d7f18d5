/** What the command line may say of a snapshot to serve, and of where. */
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
  baseRecord?: string[]
  liveRoot?: boolean
  recorded?: Record<string, string>
  socket?: string
  socketMode?: number
  run?: string
  /** Bytes a second. */
  rate?: number
  list?: boolean
}
