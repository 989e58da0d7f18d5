/**
 * Why a connection was not made, or was lost, in words for whoever can do something about it. grpc-js, Node and OpenSSL
 * each have words of their own for it; what is not known here stays as they say it.
 */

export interface ConnectionFailure {
  readonly why: string
  /** Undefined where the caller knows better whom to send where. */
  readonly remedy?: string
}

const sameAuthority =
  'give both sides certificates of one authority (`tls.ca` is the one that the other side is checked against)'

/** What is said, what it means, and what to do. The first that fits counts. */
const known: readonly [RegExp, string, string?][] = [
  [/ECONNREFUSED/, 'nothing listens there (ECONNREFUSED)'],
  [/ENOENT/, 'there is no such socket (ENOENT)'],
  [
    /EACCES|EPERM/,
    'this user may not open the socket (EACCES)',
    'run as root, or as a member of the group of the socket (`socketGroup` and `socketMode` of who listens; ls -l shows them)'
  ],
  [/ECONNRESET|socket hang up|EPIPE/, 'the connection was broken off (ECONNRESET)'],
  [
    /ETIMEDOUT/,
    'packets to it are lost (ETIMEDOUT)',
    'see whether its machine is up, and what a firewall or NetworkPolicy between drops'
  ],
  [
    /E(HOST|NET)UNREACH/,
    'no way leads there (EHOSTUNREACH)',
    'see whether its machine is up, and the routes to it (ip route get)'
  ],
  [
    /ENOTFOUND|EAI_AGAIN|Name resolution failed/,
    'its name is not known here',
    'correct the name, or see that it is in the DNS (getent hosts NAME)'
  ],
  [
    /certificate has expired/i,
    'its certificate has expired',
    'renew it; agent and router take a new file by themselves'
  ],
  [/certificate is not yet valid/i, 'its certificate is not valid yet', 'see that both clocks are right'],
  [
    /self-?signed certificate|unable to (?:get|verify)[a-z ]*(?:issuer|certificate)|unknown ca(?!\w)/i,
    'its certificate is not of an authority that is known here',
    sameAuthority
  ],
  [
    /alert (?:certificate required|bad certificate|unknown ca|certificate (?:expired|unknown|revoked)|handshake failure)/i,
    'it refuses our certificate',
    `${sameAuthority}; its log says why it refuses`
  ],
  [
    /wrong version number|packet length too long|before secure TLS connection/i,
    'it does not speak TLS there',
    'correct the port, or configure tls on both sides'
  ],
  [
    /Protocol error|Parse Error|NGHTTP2_ERR|HTTP status code/i,
    'what answers there does not speak gRPC',
    'correct the address: another service has it'
  ],
  [
    /Failed to connect/,
    'it closed the connection at once',
    'see its log: it may refuse our certificate (its authority, its name), or have too many connections'
  ]
]

/** @param text what grpc-js, Node or OpenSSL says */
export function connectionFailure(text: string): ConnectionFailure {
  const found = known.find(([says]) => says.test(text))
  if (found === undefined) return { why: withoutAdvice(text) || 'no reason given' }
  const [, why, remedy] = found
  return remedy === undefined ? { why } : { why, remedy }
}

/** Without what only grpc-js understands, and Node's advice for another program than this. */
function withoutAdvice(text: string): string {
  return text
    .replace(/^No connection established\. Last error: (?:Error: )?/, '')
    .replace(/;? ?if the root CA is installed locally.*?--use-system-ca\.?/i, '')
    .replace(/\.? ?Resolution note:.*$/, '')
    .replace(/ \(\d{4}-\d\d-\d\dT[\d:.]+Z\)/, '')
    .trim()
}
