/**
 * What a package is made of, and under which licences: the text for people (Debian's `copyright`) and the list for
 * programs (CycloneDX).
 */
import { createHash } from 'node:crypto'
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { lockedFolder, type LockedPackage, lockedPackages } from './locked-packages.ts'
import type { NodeProgram } from './node-program.ts'

const project = fileURLToPath(new URL('../..', import.meta.url)).replace(/\/$/, '')

/** A part of a package that somebody else has made. */
export interface Component {
  readonly name: string
  readonly version: string
  /** An SPDX expression */
  readonly license: string
  /** The licence's own text, with its copyright notice. */
  readonly text: string
  readonly purl: string
  /** `sha512`, of the archive in the npm registry, in hexadecimal */
  readonly sha512?: string
}

/**
 * npm packages that ship no text of their licence, where it is told by another of the same authors or by their
 * README. A new one without a text makes the build fail, so that somebody looks.
 */
const textsElsewhere: Readonly<Record<string, string>> = {
  '@koromix/koffi-linux-x64': 'koffi',
  '@koromix/koffi-linux-arm64': 'koffi',
  '@node-rs/crc32-linux-x64-gnu': '@node-rs/crc32',
  '@node-rs/crc32-linux-arm64-gnu': '@node-rs/crc32'
}

/** @param folders of npm packages, relative to the checkout, as `bundle` returns them */
export async function components(folders: readonly string[], node: NodeProgram): Promise<Component[]> {
  const locked = await lockedPackages()
  const found = await Promise.all(folders.map((folder) => component(folder, locked[folder])))
  const { version, license } = node
  const own = { name: 'node', version, license: 'MIT', text: license, purl: `pkg:generic/node@${version}` }
  return [own, ...found].sort((one, other) => one.purl.localeCompare(other.purl, 'en'))
}

async function component(folder: string, locked: LockedPackage | undefined): Promise<Component> {
  const name = folder.replace(/^.*node_modules\//, '')
  if (locked?.license === undefined) throw new Error(`package-lock.json does not tell the licence of ${folder}`)
  const { version, license, integrity } = locked
  const sha512 = Buffer.from(integrity.replace(/^sha512-/, ''), 'base64').toString('hex')
  const purl = `pkg:npm/${name.replace('@', '%40')}@${version}`
  return { name, version, license, text: await licenceText(folder, name), purl, sha512 }
}

/**
 * Its files begin with their notices: most with Buf's (Apache-2.0), those that come from Google's own library with
 * Google's (BSD-3-Clause).
 */
async function protobufNotices(): Promise<string> {
  const own = join(project, 'node_modules/@bufbuild/protobuf/dist/esm')
  const files = ['types.js', 'wire/varint.js'].map((each) => readFile(join(own, each), 'utf8'))
  const notices = (await Promise.all(files)).map((text) => /^(?:\/\/.*\n)+/.exec(text)?.[0] ?? '')
  if (!notices.every((each) => each.includes('Copyright')))
    throw new Error('@bufbuild/protobuf has its notices elsewhere')
  return notices.join('\n').replace(/^\/\/ ?/gm, '')
}

async function licenceText(folder: string, name: string): Promise<string> {
  if (name === '@bufbuild/protobuf') return protobufNotices()
  const other = textsElsewhere[name]
  const place = other === undefined ? join(project, folder) : await lockedFolder(other)
  const files = await readdir(place)
  const named = files.filter((each) => /^(licen[cs]e|copying|notice)/i.test(each)).sort()
  if (named.length > 0) {
    const texts = await Promise.all(named.map((each) => readFile(join(place, each), 'utf8')))
    return texts.join('\n')
  }
  const readme = files.find((each) => /^readme/i.test(each))
  const text = readme === undefined ? '' : await readFile(join(place, readme), 'utf8')
  const section = /^#+ *(?:the )?(?:MIT )?licen[cs]e\b[^]*/im.exec(text)?.[0]
  if (section !== undefined) return section
  const { author } = JSON.parse(await readFile(join(place, 'package.json'), 'utf8')) as {
    author?: string | { name?: string }
  }
  const holder = typeof author === 'string' ? author : author?.name
  if (holder === undefined)
    throw new Error(`${folder} has no text of its licence: look, and say so in ${import.meta.filename}`)
  return `(The package has no text of its licence. Author: ${holder})`
}

/** Every Debian has this text once, and wants it nowhere else. */
const apache = /Apache License\s+Version 2\.0, January 2004[^]*?END OF TERMS AND CONDITIONS/g
const APACHE_ELSEWHERE = '(The Apache License, Version 2.0, is in /usr/share/common-licenses/Apache-2.0.)'

/** What is in /usr/share/doc/PACKAGE/copyright: everybody's licence. */
export function copyright(parts: readonly Component[]): string {
  const heading = `deltamapper is licensed under the Apache License, Version 2.0. On Debian systems its text is in
/usr/share/common-licenses/Apache-2.0.

/usr/lib/deltamapper has parts that others have made. Each is listed with its licence; texts that are the same stand once.
`
  const texts = new Map<string, Component[]>()
  for (const each of parts) {
    const text = each.text.replaceAll(apache, APACHE_ELSEWHERE).trim()
    texts.set(text, [...(texts.get(text) ?? []), each])
  }
  const sections = [...texts].map(([text, of]) => {
    const names = of.map(({ name, version, license }) => `${name} ${version} (${license})`)
    return `${'-'.repeat(80)}\n${names.join('\n')}\n\n${text}\n`
  })
  return [heading, ...sections].join('\n')
}

/** A bill of materials in CycloneDX 1.5 (https://cyclonedx.org/docs/1.5/json/), the same for the same package. */
export function cycloneDx(name: string, version: string, timestamp: string, parts: readonly Component[]): string {
  const components = parts.map((each) => ({
    type: each.name === 'node' ? 'application' : 'library',
    'bom-ref': each.purl,
    name: each.name,
    version: each.version,
    licenses: [/[ (]/.test(each.license) ? { expression: each.license } : { license: { id: each.license } }],
    purl: each.purl,
    ...(each.sha512 === undefined ? {} : { hashes: [{ alg: 'SHA-512', content: each.sha512 }] })
  }))
  const root = { type: 'application', 'bom-ref': name, name, version, licenses: [{ license: { id: 'Apache-2.0' } }] }
  const dependencies = [{ ref: name, dependsOn: parts.map(({ purl }) => purl) }]
  const digest = createHash('sha256')
    .update(JSON.stringify([root, components]))
    .digest('hex')
  // A UUID of what is listed (RFC 9562, version 8), because a random one would make each build another.
  const uuid = digest.replace(/^(.{8})(.{4}).(.{3}).(.{3})(.{12}).*$/, '$1-$2-8$3-8$4-$5')
  return `${JSON.stringify(
    {
      bomFormat: 'CycloneDX',
      specVersion: '1.5',
      serialNumber: `urn:uuid:${uuid}`,
      version: 1,
      metadata: { timestamp, component: root },
      components,
      dependencies
    },
    undefined,
    2
  )}\n`
}
