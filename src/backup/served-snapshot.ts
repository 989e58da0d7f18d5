/**
 * A snapshot for the tools of this process: our own NBD exports of it at a socket that nobody else knows, what a copy
 * of it will read, and how much of that has been read.
 */
import { lstat, mkdtemp, readdir, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { DeltamapperError } from '../errors.ts'
import { listenOnUnixSocket, type UnixSocketListener } from '../grpc/unix-socket.ts'
import { ALLOCATION } from '../nbd/contexts.ts'
import type { ExportData } from '../nbd/export.ts'
import { HOLE } from '../nbd/protocol.ts'
import { NbdServer } from '../nbd/server.ts'
import { type NbdSource, type Offer, offers } from '../nbd/source.ts'
import { nbdUri } from '../nbd/uri.ts'
import { Validity } from '../nbd/validity.ts'
import { ClusterMap } from './cluster-map.ts'
import { PlannedMap } from './planned-map.ts'

const PREFIX = 'deltamapper-'

/** Opens a snapshot, to be seen from a base. @throws what is wrong with either */
export type OpenSnapshot = (handle: string, bases: readonly string[]) => Promise<NbdSource>

/** What a copy of an export is going to be. */
export interface CopyPlan {
  /** Bytes that are read from the snapshot. */
  readonly dataBytes: number
  /** Bytes that have become zeros: they are not read. */
  readonly zeroBytes: number
  readonly clusters: ClusterMap
}

export class ServedSnapshot {
  readonly source: NbdSource
  readonly #offers: Offer[]
  #server: NbdServer | undefined
  readonly #counted: CountedData
  readonly #failures: DeltamapperError[] = []
  #folder: string | undefined
  #listener: UnixSocketListener | undefined

  readonly #label: string

  /**
   * @param source is closed with this
   * @param label begins the name of the socket's folder, as for `removeSocketsOf`
   */
  constructor(source: NbdSource, label: string) {
    this.source = source
    this.#label = label
    this.#counted = new CountedData(source.data)
    this.#offers = offers({ ...source, data: this.#counted })
  }

  /** Bytes of data that left for a client so far. */
  get servedBytes(): number {
    return this.#counted.bytes
  }

  /**
   * Walks an export's map to its end: what is wrong with it shows before anything is written. It is served as it was
   * found: that the snapshot still is what it was, is looked at with each request.
   *
   * @param base the base's name; undefined for the whole snapshot
   * @param backingBytes size of the backup that the copy is put onto
   * @throws what the answers throw
   */
  async plan(base: string | undefined, backingBytes = 0): Promise<CopyPlan> {
    const { sizeBytes } = this.source
    const clusters = new ClusterMap(sizeBytes, backingBytes)
    const planned = new PlannedMap(sizeBytes)
    let [dataBytes, zeroBytes] = [0, 0]
    const offer = this.#offer(base)
    await offer.export.contexts.get(ALLOCATION)?.forEachRun((begin, end, flags) => {
      clusters.add(begin, end, flags)
      planned.add(begin, end, flags)
      if (flags === 0) dataBytes += end - begin
      else if (flags !== HOLE) zeroBytes += end - begin
    })
    const map = planned.map()
    if (map) {
      const contexts = new Map([...offer.export.contexts, [ALLOCATION, map]])
      await offer.export.contexts.get(ALLOCATION)?.close()
      this.#offers[this.#offers.indexOf(offer)] = { ...offer, export: { ...offer.export, contexts } }
    }
    return { dataBytes, zeroBytes, clusters }
  }

  /** Where a tool finds an export. Listens from the first call on. */
  async uri(base: string | undefined): Promise<string> {
    this.#folder ??= await mkdtemp(join(tmpdir(), `${PREFIX}${this.#label}-`))
    this.#server ??= new NbdServer({
      exports: this.#offers.map((each) => each.export),
      validity: new Validity(() => this.source.look()),
      onFailure: (error) => void this.#failures.push(error)
    })
    this.#listener ??= await listenOnUnixSocket(this.#server.listener, join(this.#folder, 'socket'))
    return nbdUri(this.#offer(base).export.name, this.#listener.path)
  }

  /** @throws what went wrong with the data or a map: the tool only heard that its request failed */
  checkServed(): void {
    const [first] = this.#failures
    if (first) throw first
  }

  async close(): Promise<void> {
    this.#listener?.close()
    await this.#server?.close()
    await this.source.close()
    if (this.#folder !== undefined) await rm(this.#folder, { recursive: true, force: true })
  }

  #offer(base: string | undefined): Offer {
    const found = this.#offers.find((each) => each.base === base)
    if (!found) throw new TypeError(`${base} is no base of ${this.source.target}`)
    return found
  }
}

/** Removes what a killed process has left below a label that nobody else uses now. */
export async function removeSocketsOf(label: string): Promise<void> {
  for (const name of await readdir(tmpdir())) {
    if (!name.startsWith(`${PREFIX}${label}-`)) continue
    const path = join(tmpdir(), name)
    if ((await lstat(path)).uid === process.getuid?.()) await rm(path, { recursive: true, force: true })
  }
}

/** Counts what is read. */
class CountedData implements ExportData {
  bytes = 0
  readonly #data: ExportData

  constructor(data: ExportData) {
    this.#data = data
  }

  parts: ExportData['parts'] = (offset, size) => this.#data.parts(offset, size)

  read: ExportData['read'] = async (part, into) => {
    const bytes = await this.#data.read(part, into)
    this.bytes += part.size
    return bytes
  }
}
