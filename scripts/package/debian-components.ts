/**
 * The Debian packages of an image, in its bill of materials.
 */
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { runQuietly } from '../../test/lab/debian-release.ts'

export interface DebianComponent {
  readonly name: string
  readonly version: string
  readonly architecture: string
}

/** @param folder has the .deb files */
export async function debianComponents(folder: string): Promise<DebianComponent[]> {
  const files = (await readdir(folder)).filter((each) => each.endsWith('.deb')).sort()
  return Promise.all(
    files.map(async (file) => {
      const show = ['--showformat', '${Package} ${Version} ${Architecture}', '--show', join(folder, file)]
      const [name = '', version = '', architecture = ''] = (await runQuietly('dpkg-deb', show, folder))
        .trim()
        .split(' ')
      return { name, version, architecture }
    })
  )
}

/** A bill of materials with them added. */
export function withDebian(bill: string, packages: readonly DebianComponent[]): string {
  const document = JSON.parse(bill) as { components: object[]; dependencies: { dependsOn: string[] }[] }
  const added = packages.map(({ name, version, architecture }) => {
    const purl = `pkg:deb/debian/${name}@${encodeURIComponent(version)}?arch=${architecture}`
    return { type: 'library', 'bom-ref': purl, name, version, purl }
  })
  document.components.push(...added)
  document.dependencies[0]?.dependsOn.push(...added.map(({ purl }) => purl))
  return `${JSON.stringify(document, undefined, 2)}\n`
}
