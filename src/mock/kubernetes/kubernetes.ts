/**
 * The Kubernetes side of the mock: an API server, the sidecar's service, and a kubeconfig that leads to both.
 */
import { randomBytes } from 'node:crypto'
import { mkdir, writeFile } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import type { MockDriver } from '../driver/driver.ts'
import { ApiServer } from './api-server.ts'
import { Authority } from './certificate.ts'
import { Cluster, NAMESPACE } from './cluster.ts'
import { Sidecar } from './sidecar.ts'

export interface KubernetesSide {
  /** Path of the kubeconfig. */
  readonly kubeconfig: string
  readonly namespace: string
  /** Cuts the connections to the service. */
  cut(): void
  close(): void
}

/** @param folder where the kubeconfig is written */
export async function startKubernetes(driver: MockDriver, endpoint: string, folder: string): Promise<KubernetesSide> {
  const cluster = new Cluster(driver.history)
  const userToken = randomBytes(16).toString('hex')
  let authorities = 0
  const certify = () => {
    const authority = new Authority(`mock authority ${++authorities}`)
    return { authority, certified: authority.issue() }
  }
  const own = certify()
  const [api, sidecar] = await Promise.all([
    ApiServer.start(cluster, own.certified, userToken),
    Sidecar.start(cluster, endpoint, own.certified)
  ])
  cluster.service = { address: sidecar.address, caCert: own.authority.certificate }
  let cuts = 0
  driver.onCut = ({ targetId }) => {
    const { expireTokens, rotateCa, reuseName } = driver.scenario
    if (expireTokens) cluster.expireTokens()
    if (++cuts > 1) return
    if (reuseName) cluster.reuseName(targetId)
    if (!rotateCa) return
    const { authority, certified } = certify()
    sidecar.certify(certified)
    cluster.service = { ...cluster.service, caCert: authority.certificate }
  }
  await mkdir(folder, { recursive: true })
  const kubeconfig = join(resolve(folder), 'kubeconfig')
  await writeFile(
    kubeconfig,
    JSON.stringify(configFor(api.address, own.authority.certificate, userToken), undefined, 2),
    {
      mode: 0o600
    }
  )
  return {
    kubeconfig,
    namespace: NAMESPACE,
    cut: () => sidecar.cut(),
    close() {
      api.close()
      sidecar.close()
    }
  }
}

function configFor(server: string, caCert: string, token: string): object {
  return {
    apiVersion: 'v1',
    kind: 'Config',
    clusters: [
      { name: 'mock', cluster: { server, 'certificate-authority-data': Buffer.from(caCert).toString('base64') } }
    ],
    users: [{ name: 'backup', user: { token } }],
    contexts: [{ name: 'mock', context: { cluster: 'mock', user: 'backup', namespace: NAMESPACE } }],
    'current-context': 'mock'
  }
}
