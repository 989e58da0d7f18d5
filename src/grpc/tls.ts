/**
 * Mutual TLS between routers and agents: certificates from files, read again when they change, and peers recognised by
 * a name.
 *
 * Both sides have certificates of the same private authority, but that proves little: an agent's certificate must not
 * be good for asking other agents. So each side also demands a certain DNS name among the subject alternative names of
 * the other's. The name is configured, not the one that was dialled: pods are dialled by address, and share one
 * certificate.
 *
 * TLS 1.3 only, because both ends are ours. No session is resumed: every connection is checked anew, so an expired
 * certificate or a removed authority counts from the next connection on.
 */
import { constants, X509Certificate } from 'node:crypto'
import type { Socket } from 'node:net'
import { createServer, createSecureContext, type Server, type TLSSocket } from 'node:tls'
import { type ChannelCredentials, type ChannelOptions, credentials } from '@grpc/grpc-js'
import type { Logger } from 'pino'
import { DeltamapperError } from '../errors.ts'
import { systemRemedy } from '../system-errors.ts'
import { readOrdinaryFile } from '../ordinary-file.ts'
import { sparingly } from '../sparing-log.ts'
import { HandshakeLimit } from './handshake-limit.ts'

/** Paths of PEM files. */
export interface TlsFiles {
  /** Our certificate, and after it any intermediate ones. */
  readonly certificate: string
  readonly key: string
  /** The authorities of the other side's certificate; these and no others. */
  readonly ca: string
}

/** The contents of the files. */
export interface TlsMaterial {
  readonly cert: Buffer
  readonly key: Buffer
  readonly ca: Buffer
}

/**
 * How often files are checked, in milliseconds. By their content: Kubernetes swaps a link above them, which file
 * watches miss. Its kubelet itself takes about a minute to bring a new secret.
 */
const LOOK_EVERY_MS = 10_000

/** A connection without a certificate is closed after this long, in milliseconds. */
const HANDSHAKE_MS = 10_000

/** Connections that may be without a certificate yet. */
const WAITING_CONNECTIONS = 128
/** And those that have shown one: a few routers' and, while they are being replaced, their successors'. */
const KNOWN_CONNECTIONS = 256

/** Certificate, key and authorities as the files had them when they last fitted together. */
export class Certificates {
  readonly #files: TlsFiles
  readonly #logger: Logger
  readonly #listeners = new Set<(material: TlsMaterial) => void>()
  #material: TlsMaterial
  #timer: NodeJS.Timeout | undefined
  #complaint: string | undefined
  #closed = false

  private constructor(files: TlsFiles, material: TlsMaterial, logger: Logger, lookEveryMs: number) {
    this.#files = files
    this.#material = material
    this.#logger = logger
    this.#wait(lookEveryMs)
  }

  /** @throws DM_CONFIG_INVALID when a file cannot be read, holds something else, or the key is not the certificate's */
  static async load(files: TlsFiles, logger: Logger, lookEveryMs = LOOK_EVERY_MS): Promise<Certificates> {
    const material = await readTlsMaterial(files)
    warnOfExpiry(material, files, logger)
    return new Certificates(files, material, logger, lookEveryMs)
  }

  get material(): TlsMaterial {
    return this.#material
  }

  /** When our certificate expires, in milliseconds since 1970. */
  get expiresAt(): number {
    return new X509Certificate(this.#material.cert).validToDate.getTime()
  }

  /** Calls `listener` whenever there is new material. Returns what ends that. */
  onChange(listener: (material: TlsMaterial) => void): () => void {
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }

  close(): void {
    this.#closed = true
    clearTimeout(this.#timer)
    this.#listeners.clear()
  }

  #wait(lookEveryMs: number): void {
    this.#timer = setTimeout(() => {
      void this.#look().finally(() => {
        if (!this.#closed) this.#wait(lookEveryMs)
      })
    }, lookEveryMs).unref()
  }

  /**
   * Files are replaced one by one: a set that does not fit together yet waits for the next look, and is logged once.
   */
  async #look(): Promise<void> {
    let material: TlsMaterial
    try {
      material = await readTlsMaterial(this.#files)
    } catch (error) {
      const { message } = error as Error
      if (message !== this.#complaint) {
        this.#logger.warn({ reason: message }, 'new certificates cannot be used; the old ones stay in use')
      }
      this.#complaint = message
      return
    }
    this.#complaint = undefined
    const { cert, key, ca } = this.#material
    if (this.#closed || (material.cert.equals(cert) && material.key.equals(key) && material.ca.equals(ca))) return
    this.#material = material
    this.#logger.info({ validTo: new X509Certificate(material.cert).validTo }, 'certificates were read again')
    warnOfExpiry(material, this.#files, this.#logger)
    for (const listener of this.#listeners) listener(material)
  }
}

/**
 * A listener that admits clients with `clientName` in their certificate. `onConnection` gets only these. Changed
 * certificates count from the next connection on; open connections stay. `onRefused` gets everybody else.
 */
export function createTlsServer(
  certificates: Certificates,
  clientName: string,
  onConnection: (socket: TLSSocket) => void,
  logger: Logger,
  onRefused: () => void = () => undefined
): Server {
  const settings = {
    requestCert: true,
    rejectUnauthorized: true,
    minVersion: 'TLSv1.3',
    secureOptions: constants.SSL_OP_NO_TICKET
  } as const
  const server = createServer({
    ...certificates.material,
    ...settings,
    ALPNProtocols: ['h2'],
    handshakeTimeout: HANDSHAKE_MS,
    noDelay: true
  })
  const log = sparingly((fields) => logger.warn(fields, 'a client was refused'))
  const refused = (remoteAddress: string | undefined, reason: string) => {
    log({ remoteAddress, reason })
    onRefused()
  }
  const door = new HandshakeLimit(WAITING_CONNECTIONS)
  const waiting = new Map<string, Socket>()
  /** A socket that has failed does not know any more where it was from. */
  const addresses = new WeakMap<Socket, string | undefined>()
  let known = 0
  server.prependListener('connection', (socket: Socket) => {
    const peer = peerOf(socket)
    addresses.set(socket, socket.remoteAddress)
    waiting.set(peer, socket)
    socket.once('close', () => waiting.delete(peer))
    door.came(socket)
  })
  server.on('secureConnection', (socket) => {
    socket.on('error', () => undefined)
    const waited = waiting.get(peerOf(socket))
    if (waited) door.letIn(waited)
    const certificate = socket.getPeerX509Certificate()
    if (certificate === undefined || !carriesName(certificate, clientName)) {
      refused(socket.remoteAddress, `its certificate does not carry the name ${clientName}`)
      socket.destroy()
    } else if (socket.alpnProtocol !== 'h2') {
      refused(socket.remoteAddress, 'it does not speak HTTP/2')
      socket.destroy()
    } else if (known >= KNOWN_CONNECTIONS) {
      refused(socket.remoteAddress, `${known} connections are open already`)
      socket.destroy()
    } else {
      known++
      socket.once('close', () => known--)
      onConnection(socket)
    }
  })
  // For a refused certificate, the error says only that the connection has ended.
  server.on('tlsClientError', (error, socket) => {
    // The socket below, for which Node has no public name. Without it, the tests of refused clients find no address.
    const { _parent: below } = socket as unknown as { _parent?: Socket }
    const address = socket.remoteAddress ?? (below && addresses.get(below))
    refused(address, String(socket.authorizationError ?? error.message))
  })
  const stopListening = certificates.onChange((material) => server.setSecureContext({ ...material, ...settings }))
  server.on('close', stopListening)
  return server
}

/** For a channel to a server with `serverName` in its certificate, at whatever address it is. */
export function tlsChannel(
  material: TlsMaterial,
  serverName: string
): { credentials: ChannelCredentials; options: ChannelOptions } {
  return {
    credentials: credentials.createFromSecureContext(createSecureContext({ ...material, minVersion: 'TLSv1.3' }), {
      checkServerIdentity: (_host, { raw }) =>
        carriesName(new X509Certificate(raw), serverName)
          ? undefined
          : new Error(`its certificate does not carry the name ${serverName}`)
    }),
    options: { 'grpc.ssl_target_name_override': serverName, 'grpc.default_authority': serverName }
  }
}

/** Tells a connection from every other one of the same listener. */
function peerOf({ remoteAddress, remotePort }: Socket): string {
  return `${remoteAddress} ${remotePort}`
}

/** As a DNS name among the subject alternative names, word for word: no wildcards, and not the common name. */
function carriesName(certificate: X509Certificate, name: string): boolean {
  return certificate.checkHost(name, { subject: 'never', wildcards: false }) !== undefined
}

/** @throws DM_CONFIG_INVALID when a file cannot be read, holds something else, or the key is not the certificate's */
export async function readTlsMaterial({ certificate, key, ca }: TlsFiles): Promise<TlsMaterial> {
  let reading = certificate
  try {
    const material = { cert: await readOrdinaryFile(certificate), key: Buffer.alloc(0), ca: Buffer.alloc(0) }
    void new X509Certificate(material.cert)
    reading = ca
    material.ca = await readOrdinaryFile(ca)
    void new X509Certificate(material.ca)
    reading = key
    material.key = await readOrdinaryFile(key)
    createSecureContext(material)
    return material
  } catch (cause) {
    // Node's message names the file, or OpenSSL's objection to its content; never the content.
    throw new DeltamapperError(
      'DM_CONFIG_INVALID',
      `${reading} cannot be used for TLS: ${plainly((cause as Error).message)}`,
      systemRemedy(cause) ?? remedyForPem(reading, { certificate, key, ca }),
      { cause }
    )
  }
}

/** OpenSSL's objections, without its numbers and the names of its parts. */
function plainly(message: string): string {
  if (/no start line/i.test(message)) return 'it holds no PEM (-----BEGIN …)'
  if (/key values mismatch/i.test(message)) return 'it is the key of another certificate'
  if (/bad decrypt|password|interrupted or cancelled/i.test(message)) return 'it is encrypted with a password'
  return message.replace(/^error:[0-9a-f]+:(?:[^:]*:)*/i, '')
}

function remedyForPem(reading: string, { certificate, key }: TlsFiles): string {
  if (reading === certificate)
    return 'give a PEM file with a certificate, and those between it and its authority after it'
  if (reading === key) return `give a PEM file with the key that belongs to ${certificate}, without a password`
  return 'give a PEM file with the certificates of the authorities'
}

/** It may be renewed while we run, so it does not keep us from starting. */
function warnOfExpiry({ cert }: TlsMaterial, { certificate }: TlsFiles, logger: Logger): void {
  const { validTo, validToDate } = new X509Certificate(cert)
  if (validToDate.getTime() < Date.now()) {
    logger.error({ certificate, validTo }, 'our certificate has expired: no peer accepts it until it is renewed')
  }
}
