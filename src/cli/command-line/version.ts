/**
 * The version in package.json, which a checkout and the published package both have above this file.
 */
import { findPackageJSON } from 'node:module'
import { readFileSync } from 'node:fs'

export function packageVersion(): string {
  const path = findPackageJSON(import.meta.url)
  if (path === undefined) throw new Error('package.json is missing: install deltamapper again')
  return (JSON.parse(readFileSync(path, 'utf8')) as { version: string }).version
}
