/**
 * Objects of a cluster, from the recorded ones under test/fixtures/kubernetes.
 */
import { readFileSync } from 'node:fs'
import { parseAllDocuments } from 'yaml'
import { type KubernetesObject, withOnly } from '../../src/kubernetes/object.ts'
import type { Driver, Find } from '../../src/router/drivers/driver.ts'

const folder = new URL('../fixtures/kubernetes/', import.meta.url)

/** The objects of a file, as the API server would send them. */
export function recordedObjects(file: string): KubernetesObject[] {
  return parseAllDocuments(readFileSync(new URL(`${file}.yaml`, folder), 'utf8')).map(
    (document) => JSON.parse(JSON.stringify(document)) as KubernetesObject
  )
}

/** Where the API server lists objects of this one's kind, of all namespaces. */
export function listPathOf({ apiVersion = 'v1', kind = '' }: KubernetesObject): string {
  const plural = kind === 'EndpointSlice' ? 'endpointslices' : `${kind.toLowerCase()}s`
  return `${apiVersion.includes('/') ? '/apis' : '/api'}/${apiVersion}/${plural}`
}

/** Looks objects up as the router's caches do. */
export function findAmong(objects: readonly KubernetesObject[], { resources }: Driver): Find {
  return (resource, key) => {
    const { path, fields, keys } = resources[resource]
    const namespace = /\/namespaces\/([^/]+)/.exec(path)?.[1]
    return objects
      .filter((object) => listPathOf(object) === path.replace(/\/namespaces\/[^/]+/, ''))
      .filter((object) => namespace === undefined || object.metadata.namespace === namespace)
      .map((object) => withOnly(object, fields))
      .filter((object) => keys(object).includes(key))
  }
}
