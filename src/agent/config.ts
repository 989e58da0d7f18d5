/**
 * The agent's configuration: a YAML (or JSON) file, which the command line overrides. Errors name the field and stop
 * the agent at start: an agent that runs differently from its configuration would be found out during a restore.
 */
import { availableParallelism, totalmem } from 'node:os'
import { z } from 'zod'
import {
  checkServing,
  invalidConfig,
  isMapping,
  readConfigFile,
  socketFields,
  tlsFields,
  valid
} from '../process/config-file.ts'
import { describeIssues } from '../config-issues.ts'
import { waysToRead } from '../devicemapper/metadata-medium.ts'
import { type Engine, engines } from '../devicemapper/tools/engine.ts'
import { checkMonitorAddress } from '../monitoring/monitor.ts'
import { faultOfCommand } from '../search-path.ts'
import { isHandleName } from '../handle.ts'

/** The default address. */
export const DEFAULT_LISTEN = 'unix:///run/deltamapper/agent.sock'

/** The words of a command, its program first. */
const commandWords = z.array(z.string().min(1)).superRefine((words, context) => {
  const message = faultOfCommand(words)
  if (message !== undefined) context.addIssue({ code: 'custom', message })
})

/**
 * The fields of the file; all are optional. Unknown ones are refused: a misspelt option must not silently become its
 * default.
 */
export const agentConfig = z.strictObject({
  /** Addresses, `unix:///path.sock` or, with `tls`, `tcp://HOST:PORT`. */
  listen: z.array(z.string()).min(1).default([DEFAULT_LISTEN]),
  /** Mutual TLS for all `tcp://` addresses. */
  tls: z
    .strictObject({
      ...tlsFields,
      /** The DNS name that a client's certificate must have: the router's. */
      clientName: z.string().min(1)
    })
    .optional(),
  /** Listen on tcp://127.0.0.1 and [::1] without TLS, where every user of this machine can connect. For tests. */
  allowLoopbackTcp: z.boolean().default(false),
  ...socketFields,
  /**
   * Accept calls that change owned pools and tracked volumes. By default only if socketMode lets nobody but the owner
   * connect.
   */
  admin: z.boolean().optional(),
  /** The answer of GetPluginInfo: behind a CSI driver, that driver's name. */
  driverName: z.string().default('deltamapper.local'),
  /** Recorded pools to serve: name → folder. */
  recorded: z
    .record(z.string().refine(isHandleName), z.string().min(1), {
      error: ({ code }) => (code === 'invalid_key' ? 'is no source name: letters, digits and + _ . - only' : undefined)
    })
    .default({}),
  /** Serve this node's thin pools as well: device-mapper's and LVM's. By default if no recorded pools are given. */
  live: z.boolean().optional(),
  /** The words that start LVM, before its subcommand; another host's through nsenter or chroot. */
  lvmCommand: commandWords.min(1).default(['lvm']),
  /** The agent's database: what it served, what it made, what it holds. */
  catalog: z.string().min(1).default('/var/lib/deltamapper/catalog.sqlite'),
  /** Refuse a base that this agent never served: nothing proves that it was not trimmed since its backup. */
  strictBases: z.boolean().default(false),
  /** Records of bases: what is kept of snapshots in thin pools, so that they need not stay to be compared with. */
  bases: z
    .strictObject({
      /** How many of each volume; with 0, none are made. Younger ones than `days` are kept too. */
      keep: z.int().min(0).max(10_000).default(3),
      days: z.number().min(0).max(36_500).default(45),
      /** Bytes for all of them. */
      maxBytes: z
        .int()
        .min(0)
        .default(2 ** 30),
      /** Their folder, on a local file system; by default `bases` beside the catalog. */
      folder: z.string().min(1).optional()
    })
    .prefault({}),
  /** Metadata snapshots, for uses that cannot do without them. */
  lease: z
    .strictObject({
      /**
       * None is taken of a pool with less free metadata: this many percent or this many blocks of 4 KiB, whichever is
       * less.
       */
      freePercent: z.number().min(0).max(100).default(25),
      freeBlocks: z.int().min(0).default(1024),
      /** How long one may be held. */
      holdSeconds: z.number().min(1).max(86_400).default(600),
      /** How long to wait until another process releases its own. */
      waitSeconds: z.number().min(0).max(3600).default(30)
    })
    .prefault({}),
  /** Tracked volumes (`deltamapper era`). */
  era: z
    .strictObject({
      /**
       * How long a volume may be suspended for a snapshot, unless the caller gives a deadline. Everything that writes
       * to it waits.
       */
      deadlineSeconds: z.number().min(1).max(600).default(30),
      /**
       * By the volume's name: how its snapshots are taken, if not by LVM. Volume, snapshot and data device follow these
       * words.
       */
      snapshotCommands: z
        .record(
          z.string().refine(isHandleName),
          z.strictObject({ take: commandWords.min(1), remove: commandWords.min(1) })
        )
        .default({}),
      /**
       * The history continues after a restart that was no orderly shutdown (`era deactivate --at-shutdown`), such as a
       * crash. Set it only if no other system is booted on the machine and nothing else writes to the data devices.
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
       * Chunks that were written to after the target, and perhaps before as well, are told apart by their old contents:
       * `auto` where base and target are read-only and the base was so when it was served, `always` where they are
       * read-only now, `never`. Otherwise they count as changed.
       */
      compare: z.enum(['auto', 'never', 'always']).default('auto'),
      /**
       * With `auto`, the most that is read for it in one answer; the rest counts as changed. And how fast, whatever
       * `compare` says.
       */
      compareMebibytes: z.number().min(0).default(1024),
      compareMebibytesPerSecond: z.number().min(0.1).default(64),
      /** For all answers about classic snapshots together. An answer gets an eighth of what is left, 32 MiB at most. */
      memoryMebibytes: z.number().min(1).default(128)
    })
    .prefault({}),
  /**
   * What reads the metadata: `native` our code, `tools` thin_delta and thin_dump, `both` our code, checked with the
   * tools.
   */
  engine: z.enum(engines).default('native'),
  /** Words before a tool's name, for another host's tools (nsenter, chroot) or another folder's (env PATH=…). */
  toolCommand: commandWords.default([]),
  /**
   * Read the images of recorded pools without the page cache, as devices are read. Slower, and easier on a machine's
   * memory.
   */
  directReads: z.boolean().default(false),
  /**
   * How walks read metadata devices: through the kernel's queue of reads (`aio`), by threads that wait for each read
   * (`preadv`), or by threads only where there is no queue to be had (`auto`).
   */
  reads: z.enum(waysToRead).default('auto'),
  /** How long a metadata device may take to answer one read. Calls that wait longer end with DM_READ_FAILED. */
  readDeadlineSeconds: z.number().min(0.1).max(3600).default(30),
  /**
   * How long the examination for `doctor`, and the one at the start, waits for each thing that it looks at: LVM,
   * device-mapper, a pool's metadata. It then says that this one has not answered. Some follow each other.
   */
  examinationDeadlineSeconds: z.number().min(0.1).max(60).default(8),
  /**
   * The most MiB a second to read from one metadata device, so that its pool serves others first. No limit by default.
   */
  readMebibytesPerSecond: z.number().min(0.1).optional(),
  /**
   * Threads that walk metadata. A device that hangs may keep two more for each of them, of those that
   * bin/deltamapper.js provides.
   */
  walkers: z
    .int()
    .min(1)
    .max(64)
    .default(Math.max(1, Math.min(4, availableParallelism() - 1, Math.floor(totalmem() / 2 ** 28) - 3))),
  /**
   * Answers that may run at the same time. Each takes about a MiB while nobody reads it: 256 fit the 512 MiB of our
   * manifests. And for one client, which is an address or, on a unix socket, a process (grpc/peer-process.ts).
   */
  maxStreams: z.int().min(1).max(10_000).default(256),
  maxStreamsPerClient: z.int().min(1).max(10_000).default(192),
  /** How long a client may leave a waiting answer unread; then the call ends with DM_CLIENT_IDLE. */
  idleSeconds: z.number().min(1).max(86_400).default(1800),
  /** Where to serve metrics, liveness and readiness over plain HTTP: `tcp://HOST:PORT`. Nowhere by default. */
  monitoring: z.string().superRefine(valid(checkMonitorAddress)).optional(),
  logLevel: z.enum(['debug', 'info', 'warn', 'error', 'silent']).default('info'),
  /** How long running streams may go on after SIGTERM. Kubernetes kills after 30 seconds by default. */
  drainSeconds: z.number().min(0).max(3600).default(20)
})

export type AgentConfig = z.infer<typeof agentConfig>

/** The command line's options, which override the file. */
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
  const { fields, text } = await readConfigFile(configFile)
  const merged = agentConfig.safeParse({
    ...fields,
    ...(listen?.length ? { listen } : {}),
    ...(engine === undefined ? {} : { engine }),
    ...(monitoring === undefined ? {} : { monitoring }),
    ...(recorded && Object.keys(recorded).length > 0 && isMapping(fields['recorded'] ?? {})
      ? { recorded: { ...(fields['recorded'] as object | undefined), ...recorded } }
      : {})
  })
  if (!merged.success) throw invalidConfig(configFile, describeIssues(merged.error.issues, agentConfig, text))
  checkServing(merged.data)
  return merged.data
}
