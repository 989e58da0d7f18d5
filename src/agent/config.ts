/**
 * The agent's configuration: a YAML (or JSON) file, overruled by the command line. What is wrong with it is said at start, by field;
 * an agent that runs differently from what was written would be found out during a restore.
 */
import { availableParallelism } from 'node:os'
import { z } from 'zod'
import {
  checkServing,
  invalidConfig,
  isMapping,
  readConfigFile,
  socketFields,
  tlsFields,
  valid
} from '../config-file.ts'
import { type Engine, engines } from '../devicemapper/tools/engine.ts'
import { checkMonitorAddress } from '../monitoring/monitor.ts'
import { faultOfCommand } from '../search-path.ts'
import { isHandleName } from '../handle.ts'

/** Where the agent listens unless it is told otherwise. */
export const DEFAULT_LISTEN = 'unix:///run/deltamapper/agent.sock'

/** The words of a command, its program first. */
const commandWords = z.array(z.string().min(1)).superRefine((words, context) => {
  const message = faultOfCommand(words)
  if (message !== undefined) context.addIssue({ code: 'custom', message })
})

/** The file's fields; every one may be left out. Unknown ones are refused: a misspelt option must not pass for its default. */
export const agentConfig = z.strictObject({
  /** Addresses, `unix:///path.sock` or, with `tls`, `tcp://HOST:PORT`. */
  listen: z.array(z.string()).min(1).default([DEFAULT_LISTEN]),
  /** Mutual TLS for all `tcp://` addresses. */
  tls: z
    .strictObject({
      ...tlsFields,
      /** The DNS name that a client's certificate has to carry: the router's. */
      clientName: z.string().min(1)
    })
    .optional(),
  /** Listen on tcp://127.0.0.1 and [::1] without TLS, where every user of this machine can connect. For tests. */
  allowLoopbackTcp: z.boolean().default(false),
  ...socketFields,
  /** Take orders about pools of the agent's own (`deltamapper pool`). By default where socketMode lets nobody but the owner connect. */
  admin: z.boolean().optional(),
  /** What GetPluginInfo answers: behind a CSI driver, that driver's name. */
  driverName: z.string().default('deltamapper.local'),
  /** Recorded pools to serve: name → folder. */
  recorded: z
    .record(z.string().refine(isHandleName), z.string().min(1), {
      error: ({ code }) => (code === 'invalid_key' ? 'is no source name: letters, digits and + _ . - only' : undefined)
    })
    .default({}),
  /** Serve this node's thin pools as well: device-mapper's and LVM's. By default where no recorded pools are given. */
  live: z.boolean().optional(),
  /** The words that start LVM, a subcommand comes after them; another host's through nsenter or chroot. */
  lvmCommand: commandWords.min(1).default(['lvm']),
  /** Where the agent keeps what it has to know again: what was served, what it made, what it holds. */
  catalog: z.string().min(1).default('/var/lib/deltamapper/catalog.sqlite'),
  /** Refuse a base that this agent never served: nothing proves that it was not trimmed since the backup of it was made. */
  strictBases: z.boolean().default(false),
  /** Metadata snapshots, for what cannot do without them. */
  lease: z
    .strictObject({
      /** None is taken of a pool with less free metadata: whichever is less, this many percent or this many blocks of 4 KiB. */
      freePercent: z.number().min(0).max(100).default(25),
      freeBlocks: z.int().min(0).default(1024),
      /** How long one may be held. */
      holdSeconds: z.number().min(1).max(86_400).default(600),
      /** How long to wait for somebody else's to be released. */
      waitSeconds: z.number().min(0).max(3600).default(30)
    })
    .prefault({}),
  /** Volumes that dm-era tracks (`deltamapper era`). */
  era: z
    .strictObject({
      /** How long a volume may be suspended for a snapshot, unless whoever asks for it says so. Everything that writes to it waits. */
      deadlineSeconds: z.number().min(1).max(600).default(30),
      /** By the volume's name: how its snapshots are taken, where not by LVM. Volume, snapshot and data device come after these words. */
      snapshotCommands: z
        .record(
          z.string().refine(isHandleName),
          z.strictObject({ take: commandWords.min(1), remove: commandWords.min(1) })
        )
        .default({}),
      /**
       * The history goes on after a restart of the machine that was no orderly shutdown (`era deactivate --at-shutdown`), a crash for one. For who
       * knows that nothing else was booted meanwhile, and that nobody else writes to the devices below.
       */
      trustRestarts: z.boolean().default(false),
      /** Snapshots of each volume that can be asked about, removed ones included, and for how many days. */
      keepSnapshots: z.int().min(1).max(1_000_000).default(1000),
      keepDays: z.number().min(1).max(36_500).default(730)
    })
    .prefault({}),
  /** Classic LVM snapshots (`lvcreate -s -L`). */
  cow: z
    .strictObject({
      /**
       * Chunks that were written to after the target, and perhaps before as well, are told apart by their old contents: `auto` where base and target
       * are read-only and the base was so when it was served, `always` where they are read-only now, `never`. Otherwise they count as changed.
       */
      compare: z.enum(['auto', 'never', 'always']).default('auto'),
      /** With `auto`, the most that is read for it in one answer; the rest counts as changed. And how fast, whatever `compare` says. */
      compareMebibytes: z.number().min(0).default(1024),
      compareMebibytesPerSecond: z.number().min(0.1).default(64)
    })
    .prefault({}),
  /** Who reads the metadata: `native` ourselves, `tools` thin_delta and thin_dump, `both` ourselves, held against the tools. */
  engine: z.enum(engines).default('native'),
  /** Words that go before a tool's name, where it is another host's (nsenter, chroot) or in another folder (env PATH=…). */
  toolCommand: commandWords.default([]),
  /** Read the images of recorded pools around the page cache, as devices are. Slower, and easier on a machine's memory. */
  directReads: z.boolean().default(false),
  /** How long a metadata device may take to answer one read; what it keeps waiting for longer ends with DM_READ_FAILED. */
  readDeadlineSeconds: z.number().min(0.1).max(3600).default(30),
  /** No faster than so many MiB a second is any one metadata device read, so that its pool serves others first. As fast as it goes by default. */
  readMebibytesPerSecond: z.number().min(0.1).optional(),
  /** Threads that walk metadata. */
  walkers: z
    .int()
    .min(1)
    .max(64)
    .default(Math.max(1, Math.min(4, availableParallelism() - 1))),
  /**
   * Answers under way at the same time, each of about a MiB while nobody reads it: 256 fit the 512 MiB of our manifests. And for one client, told
   * by its address or, on a unix socket, its process (grpc/peer-process.ts).
   */
  maxStreams: z.int().min(1).max(10_000).default(256),
  maxStreamsPerClient: z.int().min(1).max(10_000).default(192),
  /** How long a client may read nothing of an answer that waits for it; then the call ends with DM_CLIENT_IDLE. */
  idleSeconds: z.number().min(1).max(86_400).default(1800),
  /** Where metrics, liveness and readiness are served over plain HTTP: `tcp://HOST:PORT`. Nowhere by default. */
  monitoring: z.string().superRefine(valid(checkMonitorAddress)).optional(),
  logLevel: z.enum(['debug', 'info', 'warn', 'error', 'silent']).default('info'),
  /** How long streams under way may go on after SIGTERM. Kubernetes kills after 30 seconds unless told otherwise. */
  drainSeconds: z.number().min(0).max(3600).default(20)
})

export type AgentConfig = z.infer<typeof agentConfig>

/** What the command line says; it goes before the file. */
export interface AgentOptions {
  configFile?: string
  listen?: string[]
  recorded?: Record<string, string>
  engine?: Engine
  monitoring?: string
}

/** @throws DM_CONFIG_INVALID naming file and field */
export async function loadConfig({
  configFile,
  listen,
  recorded,
  engine,
  monitoring
}: AgentOptions): Promise<AgentConfig> {
  const fields = await readConfigFile(configFile)
  const merged = agentConfig.safeParse({
    ...fields,
    ...(listen?.length ? { listen } : {}),
    ...(engine === undefined ? {} : { engine }),
    ...(monitoring === undefined ? {} : { monitoring }),
    ...(recorded && Object.keys(recorded).length > 0 && isMapping(fields['recorded'] ?? {})
      ? { recorded: { ...(fields['recorded'] as object | undefined), ...recorded } }
      : {})
  })
  if (!merged.success) throw invalidConfig(configFile, z.prettifyError(merged.error))
  checkServing(merged.data)
  return merged.data
}
