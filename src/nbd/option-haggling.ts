/**
 * The first phase of a connection: client and server agree on an export, on structured replies, and on metadata
 * contexts.
 *
 * The client names options in any order and as often as it likes; one that is not known is answered so, and the next
 * one is read. It ends with GO (or the old EXPORT_NAME), or without an export.
 */
import type { Export } from './export.ts'
import { listedContexts, selectedContexts } from './contexts.ts'
import {
  decodeExportName,
  decodeInfoRequest,
  decodeMetaContextRequest,
  encodeBlockSizeInfo,
  encodeExportInfo,
  encodeExportNameReply,
  encodeListedExport,
  encodeMetaContext,
  encodeOptionError,
  encodeOptionReply,
  encodeTextInfo
} from './handshake.ts'
import { info, MAX_PAYLOAD_BYTES, option, optionReply, transmissionFlag } from './protocol.ts'

/** What the client has chosen when the handshake is over. */
export interface Chosen {
  readonly export: Export
  readonly structuredReplies: boolean
  /** Names of contexts; the position is the id of replies. */
  readonly contexts: readonly string[]
}

/** What to send, and whether this was the end of the handshake. */
export interface OptionAnswer {
  readonly replies: readonly Buffer[]
  readonly then: 'go on' | 'transmit' | 'disconnect'
}

const FLAGS =
  transmissionFlag.hasFlags | transmissionFlag.readOnly | transmissionFlag.sendFlush | transmissionFlag.canMultiConn

export class OptionHaggling {
  readonly #exports: readonly Export[]
  readonly #refusal: () => string | undefined
  readonly #noZeroes: boolean
  #structuredReplies = false
  #selected: { readonly export: Export; readonly contexts: readonly string[] } | undefined
  #chosen: Export | undefined

  /**
   * @param exports the first one is the default, which has no name
   * @param refusal why nobody may begin any more; undefined while they may
   * @param noZeroes the client can do without padding
   */
  constructor(exports: readonly Export[], refusal: () => string | undefined, noZeroes: boolean) {
    this.#exports = exports
    this.#refusal = refusal
    this.#noZeroes = noZeroes
  }

  /** Once it has ended with `transmit`. */
  get chosen(): Chosen | undefined {
    if (!this.#chosen) return undefined
    // Contexts that were selected of another export do not count.
    const contexts = this.#selected?.export === this.#chosen ? this.#selected.contexts : []
    return { export: this.#chosen, structuredReplies: this.#structuredReplies, contexts }
  }

  answer(number: number, data: Buffer): OptionAnswer {
    switch (number) {
      case option.exportName:
        return this.#exportName(data)
      case option.abort:
        return { replies: [encodeOptionReply(number, optionReply.ack)], then: 'disconnect' }
      case option.list:
        if (data.length > 0) return failed(number, 'invalid', 'a list takes no data')
        return goOn(...this.#exports.map(({ name }) => encodeListedExport(name)), ack(number))
      case option.info:
      case option.go:
        return this.#info(number, data)
      case option.structuredReply:
        if (data.length > 0) return failed(number, 'invalid', 'structured replies take no data')
        this.#structuredReplies = true
        return goOn(ack(number))
      case option.listMetaContext:
      case option.setMetaContext:
        return this.#metaContext(number, data)
      default:
        return failed(number, 'unsupported', 'this option is not known here')
    }
  }

  #find(name: string): Export | undefined {
    return name === '' ? this.#exports[0] : this.#exports.find((each) => each.name === name)
  }

  #exportName(data: Buffer): OptionAnswer {
    const name = decodeExportName(data)
    const found = name === undefined || this.#refusal() !== undefined ? undefined : this.#find(name)
    // There is no way to say why.
    if (!found) return { replies: [], then: 'disconnect' }
    this.#chosen = found
    return { replies: [encodeExportNameReply(found.sizeBytes, FLAGS, this.#noZeroes)], then: 'transmit' }
  }

  #info(number: number, data: Buffer): OptionAnswer {
    const request = decodeInfoRequest(data)
    if (!request) return failed(number, 'invalid', 'the lengths of this option do not add up')
    const found = this.#find(request.exportName)
    if (!found) return failed(number, 'unknown', 'there is no export of this name')
    const refusal = this.#refusal()
    if (refusal !== undefined) return failed(number, 'shutdown', refusal)
    const reply = (content: Buffer) => encodeOptionReply(number, optionReply.info, content)
    const replies = [reply(encodeExportInfo(found.sizeBytes, FLAGS))]
    if (request.wanted.has(info.name)) replies.push(reply(encodeTextInfo(info.name, found.name)))
    if (request.wanted.has(info.description)) replies.push(reply(encodeTextInfo(info.description, found.description)))
    if (request.wanted.has(info.blockSize))
      replies.push(reply(encodeBlockSizeInfo(1, found.preferredBytes, MAX_PAYLOAD_BYTES)))
    replies.push(ack(number))
    if (number === option.info) return goOn(...replies)
    this.#chosen = found
    return { replies, then: 'transmit' }
  }

  #metaContext(number: number, data: Buffer): OptionAnswer {
    const sets = number === option.setMetaContext
    // Whatever was set before is gone, also where this fails.
    if (sets) this.#selected = undefined
    if (!this.#structuredReplies) return failed(number, 'invalid', 'ask for structured replies first')
    const request = decodeMetaContextRequest(data)
    if (!request) return failed(number, 'invalid', 'the lengths of this option do not add up')
    const found = this.#find(request.exportName)
    if (!found) return failed(number, 'unknown', 'there is no export of this name')
    const names = [...found.contexts.keys()]
    if (!sets) {
      const listed = listedContexts(names, request.queries)
      return goOn(...listed.map((name) => encodeMetaContext(number, 0, name)), ack(number))
    }
    const contexts = selectedContexts(names, request.queries)
    this.#selected = { export: found, contexts }
    return goOn(...contexts.map((name, id) => encodeMetaContext(number, id, name)), ack(number))
  }
}

function ack(number: number): Buffer {
  return encodeOptionReply(number, optionReply.ack)
}

function goOn(...replies: Buffer[]): OptionAnswer {
  return { replies, then: 'go on' }
}

function failed(number: number, type: 'invalid' | 'unknown' | 'unsupported' | 'shutdown', why: string): OptionAnswer {
  return goOn(encodeOptionError(number, optionReply[type], why))
}
