/**
 * Real NBD clients against a server in the process of the test.
 */
import { execFile } from 'node:child_process'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import { openSource } from '../../src/cli/answers/nbd-sources.ts'
import type { NbdOptions } from '../../src/cli/answers/nbd-options.ts'
import type { DeltamapperError } from '../../src/errors.ts'
import { listenOnUnixSocket } from '../../src/grpc/unix-socket.ts'
import { NbdServer } from '../../src/nbd/server.ts'
import { type NbdSource, offers } from '../../src/nbd/source.ts'
import { Validity } from '../../src/nbd/validity.ts'
import { ensureNbdTools, type NbdRelease } from '../lab/nbd-tools.ts'
import { LabUnavailable } from '../lab/packages.ts'

/** Those whose tools are used; `npm run soak` asks for others. Where one cannot be had, its tests are left out and say so. */
const releases = (process.env['NBD_RELEASES'] ?? 'bookworm,trixie').split(',') as NbdRelease[]
const available = new Map<NbdRelease, string>()
const unavailable = new Map<NbdRelease, string>()
for (const each of releases) {
  try {
    available.set(each, await ensureNbdTools(each))
  } catch (error) {
    // Where CI is set, nothing may be left out.
    if (!(error instanceof LabUnavailable) || process.env['CI']) throw error
    unavailable.set(each, error.message)
  }
}

/** Runs a program of a release's tools to its end. */
export type RunTool = (
  program: string,
  args: readonly string[]
) => Promise<{ status: number; stdout: string; stderr: string }>

/** A test with the tools of each release, or of those that are named. */
export function clientTest(
  title: string,
  run: (t: ExecutionContext, tool: RunTool) => Promise<void>,
  only: readonly NbdRelease[] = releases
): void {
  for (const [release, bin] of available) {
    if (!only.includes(release)) continue
    test(`${title} (${release})`, (t) => run(t, (program, args) => runProgram(join(bin, program), args)))
  }
  for (const [release, why] of unavailable) {
    if (only.includes(release)) test.skip(`${title} (${release}: ${why})`, () => undefined)
  }
}

/** The folder with a release's tools, for PATH. */
export function toolFolder(release: NbdRelease): string {
  return available.get(release) ?? ''
}

function runProgram(path: string, args: readonly string[]) {
  return new Promise<{ status: number; stdout: string; stderr: string }>((resolve, reject) => {
    execFile(path, args, { maxBuffer: 2 ** 26 }, (error, stdout, stderr) => {
      if (error !== null && typeof error.code !== 'number') reject(new Error(error.message, { cause: error }))
      else resolve({ status: error === null ? 0 : Number(error.code), stdout, stderr })
    })
  })
}

export interface TestServer {
  readonly path: string
  readonly failures: DeltamapperError[]
  uri(name?: string): string
  close(): Promise<void>
}

/** Serves what the options of `deltamapper nbd` name. */
export async function serveNbd(target: string, options: NbdOptions): Promise<TestServer> {
  return serveSource(await openSource(target, options, () => undefined))
}

export async function serveSource(source: NbdSource, handshakeMs?: number): Promise<TestServer> {
  // Socket paths are short by law.
  const folder = await mkdtemp(join(tmpdir(), 'nbd-'))
  const failures: DeltamapperError[] = []
  const server = new NbdServer({
    exports: offers(source).map((each) => each.export),
    validity: new Validity(() => source.look()),
    onFailure: (error) => failures.push(error),
    ...(handshakeMs === undefined ? {} : { handshakeMs })
  })
  const listener = await listenOnUnixSocket(server.listener, join(folder, 's'))
  const { path } = listener
  return {
    path,
    failures,
    uri: (name = '') => `nbd+unix:///${name}?socket=${path}`,
    async close() {
      listener.close()
      await server.close()
      await source.close()
      await rm(folder, { recursive: true })
    }
  }
}
