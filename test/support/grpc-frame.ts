/** A message as gRPC frames it (PROTOCOL-HTTP2, "Length-Prefixed-Message"): a flag, the length, the bytes. */
export function framed(message: Uint8Array, flag = 0): Buffer {
  const header = Buffer.alloc(5)
  header[0] = flag
  header.writeUInt32BE(message.length, 1)
  return Buffer.concat([header, message])
}
