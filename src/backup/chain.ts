/**
 * The folder of a volume's chain: its lock, its manifest, and how files get in and out of it.
 *
 *   DIR/VG/LV/lock         flock(2): alone to change, shared to read
 *   DIR/VG/LV/chain.json   manifest.ts
 *   DIR/VG/LV/POINT.qcow2
 *   DIR/VG/LV/frozen.json  freeze.ts, while file systems are frozen
 *
 * A file is written as NAME.part, put on disk, and then listed in the manifest: that is the moment when it counts. Only
 * after that it gets its name. So a `.part` that is not listed is what an interrupted run left, and one that is listed
 * just lacks its last rename.
 */
import { createHash, randomUUID } from 'node:crypto'
import type { Stats } from 'node:fs'
import {
  type FileHandle,
  mkdir,
  open,
  readdir,
  readFile,
  realpath,
  rename,
  rm,
  rmdir,
  stat,
  statfs,
  writeFile
} from 'node:fs/promises'
import { dirname, join, resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { lockFile } from '../../native/file-lock.ts'
import { DeltamapperError, invalid } from '../errors.ts'
import { syncFolder } from '../sync-folder.ts'
import { isHandleName } from '../handle.ts'
import { type Manifest, MANIFEST_NAME, parseManifest, type Point } from './manifest.ts'
import { runTool, type Tool, type ToolResult, type ToolRun } from './qemu.ts'
import { atTarget } from './target-failure.ts'

const LOCK_NAME = 'lock'
const PART = '.part'
/** How long what a killed run had started may take to end, and how often to look, in milliseconds. */
const LOCK_WAIT_MS = 5000
const LOCK_LOOK_MS = 50

/** Where a chain lies, as it was named and as it is. */
interface Place {
  readonly folder: string
  readonly realFolder: string
  readonly inode: string
  /** There was no manifest. */
  readonly isNew: boolean
}

export type Access = 'exclusive' | 'shared'

export class Chain {
  readonly volume: string
  readonly folder: string
  #manifest: Manifest
  readonly #lock: FileHandle | undefined
  readonly #isNew: boolean
  /** Of the folder, to notice that another is there by its name. */
  readonly #inode: string
  /**
   * Marks the snapshots that are taken for it, and its sockets: 12 hexadecimal digits. A copy of a chain has another
   * where it lies, so the two do not take each other's away.
   */
  readonly mark: string

  private constructor(volume: string, manifest: Manifest, lock: FileHandle | undefined, place: Place) {
    this.volume = volume
    this.#isNew = place.isNew
    this.folder = place.folder
    this.#manifest = manifest
    this.#lock = lock
    this.#inode = place.inode
    this.mark = createHash('sha256').update(`${manifest.chain} ${place.realFolder}`).digest('hex').slice(0, 12)
  }

  /**
   * Opens a volume's chain, for as long as nobody else may change it.
   *
   * @param root the folder of all chains, which has to exist
   * @param access `exclusive` makes the chain where there is none, and finishes or undoes what an interrupted run left;
   *   a merge is prune.ts's to finish
   * @throws DM_CHAIN_IN_USE, DM_CHAIN_GONE, DM_CHAIN_READ_ONLY, DM_CHAIN_NO_SPACE, DM_CHAIN_INVALID, DM_CHAIN_FOREIGN,
   *   DM_POINT_NOT_FOUND where there is no chain to read
   */
  static async open(root: string, volume: string, access: Access): Promise<Chain> {
    const folder = chainFolder(resolve(root), volume)
    return atTarget(folder, async () => {
      // It is not made: where a disk is not mounted, the backup would go to the disk below.
      await stat(root)
      if (access === 'exclusive') await makeFolders(resolve(root), volume)
      else if (!(await exists(join(folder, MANIFEST_NAME)))) throw noChain(root, volume)
      const lock = await locked(folder, access)
      try {
        const { dev, ino } = await stat(folder)
        const found = await readManifest(folder, volume)
        const manifest = found ?? (await newManifest(folder, volume))
        const place = { folder, realFolder: await realpath(folder), inode: `${dev} ${ino}`, isNew: !found }
        const chain = new Chain(volume, manifest, lock, place)
        if (access === 'exclusive') await chain.#recover()
        // On disk before anything is marked with it: the next run would not know what a killed one has left.
        if (!found) await chain.save({})
        return chain
      } catch (error) {
        await lock?.close()
        throw error
      }
    })
  }

  get manifest(): Manifest {
    return this.#manifest
  }

  get points(): readonly Point[] {
    return this.#manifest.points
  }

  get newest(): Point | undefined {
    return this.#manifest.points.at(-1)
  }

  path(name: string): string {
    return join(this.folder, name)
  }

  /** Where a new file is written. */
  partOf(name: string): string {
    return `${name}${PART}`
  }

  /** Makes an empty one that nobody else may read: tools, which would let others, leave that as it is. */
  async makePart(name: string): Promise<void> {
    await atTarget(this.folder, () => writeFile(this.path(this.partOf(name)), '', { mode: 0o600 }))
  }

  /** Under which name a file of the manifest is there: it may lack its last rename. */
  async nameOf(file: string): Promise<string> {
    if (!(await exists(this.path(file))) && (await exists(this.path(this.partOf(file))))) return this.partOf(file)
    return file
  }

  /** For processes that go on when this one is killed: whoever has them open holds the lock as well. */
  get lockDescriptors(): number[] {
    return this.#lock ? [this.#lock.fd] : []
  }

  /** Runs a tool in the folder; it holds the chain's lock as well. @throws what runTool throws, DM_CHAIN_GONE */
  async run(tool: Tool, words: readonly string[], run: Omit<ToolRun, 'folder' | 'inherits'> = {}): Promise<ToolResult> {
    try {
      return await runTool(tool, words, { ...run, folder: this.folder, inherits: this.lockDescriptors })
    } catch (error) {
      await this.checkThere()
      throw error
    }
  }

  /** @throws DM_CHAIN_GONE where the folder is not the one that was opened */
  async checkThere(): Promise<void> {
    await atTarget(this.folder, async () => {
      const { dev, ino } = await stat(this.folder)
      if (`${dev} ${ino}` === this.#inode) return
      throw new DeltamapperError(
        'DM_CHAIN_GONE',
        `${this.folder} is another folder than before`,
        'mount it again, and run it again: what was finished is as it was'
      )
    })
  }

  /** In bytes, for this process. */
  async freeBytes(): Promise<number> {
    return atTarget(this.folder, async () => {
      const { bavail, bsize } = await statfs(this.folder)
      return bavail * bsize
    })
  }

  /** Replaces the manifest: on disk when this resolves. */
  async save(change: Partial<Pick<Manifest, 'points' | 'merging' | 'dropped'>>): Promise<void> {
    const next = { ...this.#manifest, ...change }
    await this.checkThere()
    await atTarget(this.folder, async () => {
      const part = this.path(this.partOf(MANIFEST_NAME))
      const file = await open(part, 'w', 0o600)
      try {
        await file.writeFile(`${JSON.stringify(next, undefined, 2)}\n`)
        await file.sync()
      } finally {
        await file.close()
      }
      await rename(part, this.path(MANIFEST_NAME))
      await syncFolder(this.folder)
    })
    this.#manifest = next
  }

  /** Adds a point whose file is written as a part: on disk and by its name when this resolves. */
  async add(point: Point): Promise<void> {
    await this.syncFile(this.partOf(point.file))
    await this.save({ points: [...this.points, point] })
    await this.rename(this.partOf(point.file), point.file)
  }

  async syncFile(name: string): Promise<void> {
    await atTarget(this.folder, async () => {
      const file = await open(this.path(name), 'r+')
      try {
        await file.sync()
      } finally {
        await file.close()
      }
    })
  }

  async rename(from: string, to: string): Promise<void> {
    await atTarget(this.folder, async () => {
      await rename(this.path(from), this.path(to))
      await syncFolder(this.folder)
    })
  }

  async remove(name: string): Promise<void> {
    await atTarget(this.folder, () => rm(this.path(name), { force: true }))
  }

  async has(name: string): Promise<boolean> {
    return exists(this.path(name))
  }

  /** Leaves word for the next run: on disk when this resolves. */
  async note(name: string, text: string): Promise<void> {
    await atTarget(this.folder, async () => {
      const part = this.path(this.partOf(name))
      await writeFile(part, text, { mode: 0o600, flush: true })
      await rename(part, this.path(name))
      await syncFolder(this.folder)
    })
  }

  /** Undefined where there is none. */
  async readNote(name: string): Promise<string | undefined> {
    return atTarget(this.folder, async () => ((await this.has(name)) ? readFile(this.path(name), 'utf8') : undefined))
  }

  async close(): Promise<void> {
    await this.#lock?.close()
  }

  /**
   * Takes a chain away that was made when this was opened, and that nothing has been marked with: a misspelt volume
   * leaves nothing behind. Any other one stays.
   */
  async abandon(): Promise<void> {
    if (!this.#isNew || this.points.length > 0) return
    for (const name of [MANIFEST_NAME, LOCK_NAME]) await this.remove(name)
    // (Of a group, others may have chains.)
    await rmdir(this.folder).catch(() => undefined)
    if (this.volume.includes('/')) await rmdir(dirname(this.folder)).catch(() => undefined)
  }

  /** Finishes renames, and removes what was never listed. */
  async #recover(): Promise<void> {
    const parts = (await readdir(this.folder)).filter((name) => name.endsWith(PART))
    for (const part of parts) {
      const file = part.slice(0, -PART.length)
      const isListed = this.points.some((point) => point.file === file)
      if (isListed && !(await exists(this.path(file)))) await this.rename(part, file)
      else await this.remove(part)
    }
  }
}

/**
 * The chains that there are below a folder, by their volumes' names, in alphabetical order.
 *
 * @throws DM_CHAIN_GONE; DM_ARGUMENT_INVALID where the folder is itself that of one chain
 */
export async function chainsBelow(root: string): Promise<string[]> {
  return atTarget(root, async () => {
    const found: string[] = []
    const look = async (path: string[]): Promise<void> => {
      for (const entry of await readdir(join(root, ...path), { withFileTypes: true })) {
        if (entry.isFile() && entry.name === MANIFEST_NAME) found.push(path.join('/'))
        else if (entry.isDirectory() && path.length < 2 && isHandleName(entry.name)) await look([...path, entry.name])
      }
    }
    await look([])
    const below = found.filter((volume) => volume !== '')
    if (below.length === 0 && found.length > 0) {
      throw invalid(
        `${root} is the folder of one volume`,
        'name the one above it that `deltamapper backup --to` was given'
      )
    }
    return below.sort()
  })
}

/** A chain's points as they are now, also while somebody works on it. @throws DM_CHAIN_… */
export async function readPoints(root: string, volume: string): Promise<readonly Point[]> {
  const folder = chainFolder(resolve(root), volume)
  return atTarget(folder, async () => (await readManifest(folder, volume))?.points ?? [])
}

function chainFolder(root: string, volume: string): string {
  const names = volume.split('/')
  if (names.length > 2 || !names.every(isHandleName)) {
    throw invalid(`${JSON.stringify(volume)} is no volume`, 'name it as SOURCE/NAME, a tracked volume by its name')
  }
  return join(root, ...names)
}

/** One by one: below /proc, `recursive` never ends. On disk when this resolves. */
async function makeFolders(root: string, volume: string): Promise<void> {
  let path = root
  for (const name of volume.split('/')) {
    const above = path
    path = join(path, name)
    const isNew = await mkdir(path, { mode: 0o700 }).then(
      () => true,
      (error: NodeJS.ErrnoException) => {
        if (error.code !== 'EEXIST') throw error
        return false
      }
    )
    if (isNew) await syncFolder(above)
  }
}

function noChain(root: string, volume: string): DeltamapperError {
  return new DeltamapperError(
    'DM_POINT_NOT_FOUND',
    `there are no backups of ${volume} below ${root}`,
    '`deltamapper backup list DIR` says what there is'
  )
}

async function readManifest(folder: string, volume: string): Promise<Manifest | undefined> {
  const path = join(folder, MANIFEST_NAME)
  await checkOrdinary(path)
  try {
    return parseManifest(await readFile(path, 'utf8'), path, volume)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error
  }
}

/** @throws DM_CHAIN_INVALID where there are files of a chain already */
async function newManifest(folder: string, volume: string): Promise<Manifest> {
  const left = (await readdir(folder)).find((name) => name.endsWith('.qcow2'))
  if (left === undefined) return { format: 1, volume, chain: randomUUID(), points: [] }
  throw new DeltamapperError(
    'DM_CHAIN_INVALID',
    `${folder} has ${left}, and no ${MANIFEST_NAME} that would say what it is`,
    'put the manifest back, or move the files elsewhere: they can be restored with `qemu-img convert`'
  )
}

/** Undefined on read-only media that were copied without the lock: nobody can change them. */
async function locked(folder: string, access: Access): Promise<FileHandle | undefined> {
  const path = join(folder, LOCK_NAME)
  await checkOrdinary(path)
  const file = await open(path, access === 'exclusive' ? 'a' : 'r', 0o600).catch((error: NodeJS.ErrnoException) => {
    if (access === 'shared' && error.code === 'ENOENT') return undefined
    throw error
  })
  if (!file) return undefined
  try {
    for (let waited = 0; !lockFile(file.fd, access); waited += LOCK_LOOK_MS) {
      if (waited >= LOCK_WAIT_MS) throw inUse(folder)
      await sleep(LOCK_LOOK_MS)
    }
    const [own, there] = await Promise.all([file.stat(), statusOf(path)])
    if (own.ino === there?.ino && own.dev === there.dev) return file
  } catch (error) {
    await file.close()
    throw error
  }
  // It was abandoned meanwhile, and may be there again.
  await file.close()
  return locked(folder, access)
}

/** Opening a FIFO would wait for ever. What is not there is no matter here. @throws DM_CHAIN_INVALID */
async function checkOrdinary(path: string): Promise<void> {
  const status = await statusOf(path)
  if (status?.isFile() ?? true) return
  throw new DeltamapperError(
    'DM_CHAIN_INVALID',
    `${path} is no file`,
    'see who put it there, and move it elsewhere; the chain has files of that name'
  )
}

function inUse(folder: string): DeltamapperError {
  return new DeltamapperError(
    'DM_CHAIN_IN_USE',
    `another process is working on ${folder}`,
    `run it again once that one has ended (\`fuser ${join(folder, LOCK_NAME)}\` names it)`
  )
}

async function exists(path: string): Promise<boolean> {
  return (await statusOf(path)) !== undefined
}

/** Undefined where there is nothing. */
async function statusOf(path: string): Promise<Stats | undefined> {
  return stat(path).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return undefined
    throw error
  })
}
