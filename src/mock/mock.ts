/**
 * A mock CSI driver that listens: `deltamapper mock`, and for tests in Node `import { startMock } from
 * 'deltamapper/testing'`.
 */
import { createServer, type Socket } from 'node:net'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Server, ServerCredentials } from '@grpc/grpc-js'
import { parseAddress } from '../grpc/address.ts'
import { listenOnUnixSocket } from '../grpc/unix-socket.ts'
import { DeltamapperError } from '../errors.ts'
import { Controller } from './driver/controller.ts'
import { MockDriver } from './driver/driver.ts'
import { History } from './driver/history.ts'
import { Images } from './driver/images.ts'
import { type KubernetesSide, startKubernetes } from './kubernetes/kubernetes.ts'
import { loadScenario, type Scenario, scenarioOf } from './driver/scenario.ts'

export interface MockOptions {
  /** `unix:///path/csi.sock`. Unless given: a socket in a folder of its own, which `stop` removes. */
  readonly listen?: string | undefined
  /** A scenario's name, the path of its YAML file, or its fields; `honest` unless given. */
  readonly scenario?: string | object | undefined
  /** Whole number that everything random follows from: the history, and which scenario `random` is. Default 1. */
  readonly seed?: number | undefined
  /** A folder for the data of the snapshots and snapshots.json; without it there is no data. */
  readonly data?: string | undefined
  /** A folder for a kubeconfig: the Kubernetes side is served too. */
  readonly kubernetes?: string | undefined
}

/** A snapshot that everything can be asked of. */
export interface MockSnapshot {
  readonly id: string
  readonly volume: string
  /** Bytes. */
  readonly capacityBytes: number
  /** Absolute path of its data, where a folder was given. */
  readonly image: string | undefined
}

export interface Mock {
  /** `unix:///…`, for a client. */
  readonly endpoint: string
  /** The name of the scenario; of `random`, the one that was picked. */
  readonly scenario: Scenario
  readonly driver: MockDriver
  /** The snapshots there are now, oldest first. */
  readonly snapshots: readonly MockSnapshot[]
  /** Snapshots of a volume whose changes are not tracked, oldest first. */
  readonly untracked: readonly string[]
  /** A snapshot that is not ready. */
  readonly unready: string
  /**
   * Path of a kubeconfig, and the namespace that has the VolumeSnapshots, named as the snapshots' ids; where a
   * folder was given.
   */
  readonly kubernetes: { readonly kubeconfig: string; readonly namespace: string } | undefined
  /** How many clients are connected. */
  readonly connections: number
  /** Ends every call and connection, and removes the socket. What is in `data` stays. */
  stop(): Promise<void>
}

/** @throws DM_CONFIG_INVALID for a scenario that is none, or an address that cannot be listened on; DM_SOCKET_IN_USE */
export async function startMock({
  listen,
  scenario = 'honest',
  seed = 1,
  data,
  kubernetes
}: MockOptions = {}): Promise<Mock> {
  const chosen = typeof scenario === 'string' ? loadScenario(scenario, seed) : scenarioOf('given', scenario)
  const own = listen === undefined ? await mkdtemp(join(tmpdir(), 'dm-mock-')) : undefined
  const path = socketPath(listen ?? `unix://${join(own!, 'csi.sock')}`)
  const history = new History({ seed, growBytes: chosen.growBytes, idleNight: chosen.idleNight })
  const askable = () => history.snapshots.filter(({ ready, tracked }) => ready && tracked)
  const images = data === undefined ? undefined : await Images.create(data, askable())

  const sockets = new Set<Socket>()
  let cluster: KubernetesSide | undefined
  const cut = () => {
    for (const socket of sockets) socket.destroy()
    cluster?.cut()
  }
  const driver = new MockDriver(history, chosen, new Controller(history, images), {
    cut,
    shut: () => {
      listener.close()
      cut()
    }
  })
  const server = new Server({ 'grpc.max_send_message_length': -1, 'grpc.enable_channelz': 0 })
  for (const { definition, implementation } of driver.services) server.addService(definition, implementation)
  const injector = server.createConnectionInjector(ServerCredentials.createInsecure())
  const netServer = createServer((socket) => {
    sockets.add(socket)
    socket.on('error', () => undefined)
    socket.once('close', () => {
      sockets.delete(socket)
      driver.disconnected()
    })
    injector.injectConnection(socket)
  })
  const listener = await listenOnUnixSocket(netServer, path)
  if (kubernetes !== undefined) cluster = await startKubernetes(driver, `unix://${path}`, kubernetes)
  return {
    kubernetes: cluster,
    endpoint: `unix://${path}`,
    scenario: chosen,
    driver,
    get connections() {
      return sockets.size
    },
    get snapshots() {
      return askable().map(({ id, volume, capacityBytes }) => ({
        id,
        volume,
        capacityBytes,
        image: images?.listed.find((each) => each.id === id)?.image
      }))
    },
    untracked: history.snapshots.filter(({ tracked }) => !tracked).map(({ id }) => id),
    unready: history.snapshots.find(({ ready }) => !ready)!.id,
    async stop() {
      listener.close()
      cluster?.close()
      cut()
      server.forceShutdown()
      if (own !== undefined) await rm(own, { recursive: true, force: true })
    }
  }
}

function socketPath(listen: string): string {
  const address = parseAddress(listen)
  if (address.kind === 'unix') return address.path
  throw new DeltamapperError(
    'DM_CONFIG_INVALID',
    `${address.text} is no unix socket, and CSI drivers listen on nothing else`,
    'listen on one, as in unix:///tmp/csi.sock'
  )
}
