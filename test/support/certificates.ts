/**
 * Certificates for tests, made by `openssl` when they are needed and gone with their folder.
 */
import { execFile } from 'node:child_process'
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import type { TlsFiles } from '../../src/grpc/tls.ts'

const openssl = (...args: string[]) => promisify(execFile)('openssl', args)
const newKey = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes']

/** A private authority with a folder of its own. */
export class Authority {
  readonly folder: string
  #issued = 0

  private constructor(folder: string) {
    this.folder = folder
  }

  static async create(folder: string): Promise<Authority> {
    await mkdir(folder, { recursive: true })
    const [key, certificate] = ['ca.key', 'ca.crt'].map((name) => join(folder, name))
    await openssl('req', '-x509', ...newKey, '-keyout', key, '-out', certificate, '-subj', '/CN=test authority')
    return new Authority(folder)
  }

  get certificate(): string {
    return join(this.folder, 'ca.crt')
  }

  /** A certificate for a DNS name, with its key. `days` below 0: it has expired. */
  async issue(name: string, { days = 2 } = {}): Promise<TlsFiles> {
    const serial = String(++this.#issued)
    const stem = join(this.folder, `issued-${serial}`)
    const [request, key, certificate] = ['csr', 'key', 'crt'].map((ending) => `${stem}.${ending}`)
    const subject = ['-subj', '/CN=somebody', '-addext', `subjectAltName=DNS:${name}`]
    await openssl('req', '-new', ...newKey, '-keyout', key, '-out', request, ...subject)
    const authority = ['-CA', this.certificate, '-CAkey', join(this.folder, 'ca.key'), '-set_serial', serial]
    const rest = ['-copy_extensions', 'copy', '-days', String(days), '-out', certificate]
    await openssl('x509', '-req', '-in', request, ...authority, ...rest)
    return { certificate, key, ca: this.certificate }
  }
}
