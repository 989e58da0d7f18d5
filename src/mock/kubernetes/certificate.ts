/**
 * Certificates for the mock's service and API server: X.509 by hand (RFC 5280, DER), since Node can read certificates
 * and not make them. An authority signs one for a DNS name; both have keys of the curve P-256 and are good for ten
 * days.
 */
import { createPublicKey, generateKeyPairSync, type KeyObject, randomBytes, sign } from 'node:crypto'

/** PEM texts. */
export interface Certified {
  readonly certificate: string
  readonly key: string
}

const DAY_MS = 86_400_000
const GOOD_FOR_DAYS = 10

/** Object identifiers, encoded. */
const oid = {
  commonName: [0x55, 0x04, 0x03],
  ecdsaWithSha256: [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02],
  basicConstraints: [0x55, 0x1d, 0x13],
  subjectAltName: [0x55, 0x1d, 0x11]
} as const

export class Authority {
  readonly certificate: string
  readonly #key: KeyObject
  readonly #name: string

  /** @param name its common name; two authorities of one run need two */
  constructor(name: string) {
    this.#name = name
    const { privateKey, publicKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' })
    this.#key = privateKey
    const isAuthority = extension(oid.basicConstraints, sequence(boolean(true)), true)
    this.certificate = this.#signed(name, publicKey, isAuthority)
  }

  /** A certificate for `localhost` and 127.0.0.1. */
  issue(): Certified {
    const { privateKey, publicKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' })
    const names = sequence(der(0x82, Buffer.from('localhost')), der(0x87, Buffer.from([127, 0, 0, 1])))
    const certificate = this.#signed('localhost', publicKey, extension(oid.subjectAltName, names, false))
    return { certificate, key: privateKey.export({ type: 'pkcs8', format: 'pem' }) as string }
  }

  #signed(subject: string, publicKey: KeyObject, extensions: Buffer): string {
    const algorithm = sequence(der(0x06, Buffer.from(oid.ecdsaWithSha256)))
    const now = Date.now()
    const body = sequence(
      der(0xa0, integer(Buffer.from([2]))),
      // Positive, and never the same twice.
      integer(Buffer.concat([Buffer.from([1]), randomBytes(15)])),
      algorithm,
      nameOf(this.#name),
      sequence(time(now - DAY_MS), time(now + GOOD_FOR_DAYS * DAY_MS)),
      nameOf(subject),
      createPublicKey(publicKey.export({ type: 'spki', format: 'pem' })).export({ type: 'spki', format: 'der' }),
      der(0xa3, sequence(extensions))
    )
    const signature = der(0x03, Buffer.concat([Buffer.from([0]), sign('sha256', body, this.#key)]))
    return pem(sequence(body, algorithm, signature))
  }
}

/** Tag, length and content. */
function der(tag: number, content: Uint8Array): Buffer {
  const { length } = content
  const size = length < 0x80 ? [length] : length < 0x100 ? [0x81, length] : [0x82, length >> 8, length & 0xff]
  return Buffer.concat([Buffer.from([tag, ...size]), content])
}

const sequence = (...parts: readonly Uint8Array[]) => der(0x30, Buffer.concat(parts))
const integer = (bytes: Uint8Array) => der(0x02, bytes)
const boolean = (value: boolean) => der(0x01, Buffer.from([value ? 0xff : 0]))

function nameOf(commonName: string): Buffer {
  const attribute = sequence(der(0x06, Buffer.from(oid.commonName)), der(0x0c, Buffer.from(commonName)))
  return sequence(der(0x31, attribute))
}

/** UTCTime, to the second. */
function time(milliseconds: number): Buffer {
  const text = new Date(milliseconds).toISOString().replaceAll(/[-:T]|\.\d+/g, '')
  return der(0x17, Buffer.from(text.slice(2)))
}

function extension(id: readonly number[], value: Buffer, critical: boolean): Buffer {
  return sequence(der(0x06, Buffer.from(id)), ...(critical ? [boolean(true)] : []), der(0x04, value))
}

function pem(bytes: Buffer): string {
  const lines = bytes.toString('base64').match(/.{1,64}/g) ?? []
  return ['-----BEGIN CERTIFICATE-----', ...lines, '-----END CERTIFICATE-----', ''].join('\n')
}
