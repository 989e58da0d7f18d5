/**
 * The XML of the device-mapper tools, read as a stream: any number of bytes in, some hundred kilobytes in memory.
 *
 * saxes decides what is XML. But it reads only some 50 MB/s, less than half of what thin_delta writes, and all but a
 * handful of a document's tags look alike: `<same begin="12" length="3"/>`. So each dialect names such tags, to the
 * byte, and this file reads them without the library: the *quick* way, ten times faster. Everything else goes to saxes,
 * the *plain* way: first and last tags, attributes in another order, comments. Both ways end in the same methods of the
 * dialect. So they accept and refuse the same documents at the same place, and give the same answer (the tests compare
 * them).
 *
 *     bytes ─▶ XmlReader ─┬─ looks like one of the patterns? ─▶ dialect.matched(pattern, numbers)
 *                         └─ no: up to the next ">" ─▶ saxes ─▶ dialect.opened(element), dialect.closed()
 *
 * Beyond what XML forbids, this reader refuses everything that no tool writes and that could change the meaning of the
 * rest: a DTD (and with it entities), processing instructions, CDATA sections, text between the tags, an encoding other
 * than UTF-8, markup of more than 16 KiB. Comments and unknown attributes are skipped.
 */
import { SaxesParser } from 'saxes'
import { DeltamapperError } from '../errors.ts'

/** Anything that yields bytes: a file, a pipe, a response. Chunks may end anywhere. */
export type ByteStream = AsyncIterable<Uint8Array>

export type XmlTool = 'thin_delta' | 'thin_dump' | 'era_invalidate' | 'era_dump'
/** Which tool wrote a document, as far as its first element tells. */
export type XmlWriter = XmlTool | 'thin_delta or thin_dump'

export interface XmlOptions {
  /** The document's name in messages, such as a path. */
  name?: string | undefined
  /** False to have saxes read every tag: slower, and for comparison only. */
  quick?: boolean | undefined
}

/** Block numbers in XML are below this: the range of a data block in thin metadata. */
export const MAX_BLOCKS = 2 ** 40

/** The longest markup: a tag, or the text between two. The tools' own have some hundred bytes. */
const MAX_MARKUP_BYTES = 16 * 1024
/** Bytes looked at in one go. */
const PIECE_BYTES = 64 * 1024
/** More digits than any number here has, and few enough for a double to be exact. */
const MAX_DIGITS = 15
const MAX_NUMBERS = 4

const [TAB, NEWLINE, RETURN, SPACE, ZERO, LESS, GREATER] = [0x09, 0x0a, 0x0d, 0x20, 0x30, 0x3c, 0x3e]

/** A place in a document: both count from 1, the column in bytes. */
export interface XmlPosition {
  line: number
  column: number
}

/** The document is wrong. `position` is where the markup begins that shows it. */
export class XmlInvalid extends DeltamapperError {
  readonly position: XmlPosition
  /** The tool that wrote it, if that is not the expected one. */
  readonly writer: XmlWriter | undefined

  constructor(name: string, position: XmlPosition, { message, remedy, writer }: XmlFault) {
    super('DM_XML_INVALID', `${name}, line ${position.line}, column ${position.column}: ${message}`, remedy)
    this.position = position
    this.writer = writer
  }
}

const WRITE_AGAIN = 'have the tool write it again, look at its exit status, and pass its output on unchanged'

/** A dialect's objection to a document. The reader adds the position, and makes an XmlInvalid of it. */
class XmlFault extends Error {
  readonly remedy: string
  readonly writer: XmlWriter | undefined

  constructor(what: string, remedy = WRITE_AGAIN, writer?: XmlWriter) {
    super(what)
    this.remedy = remedy
    this.writer = writer
  }
}

/**
 * @param writer the tool that wrote it, if it is the wrong one
 * @throws an error that ends the reading: `what` says what is wrong here, and `remedy` what to do if that is not the
 *   usual
 */
export function refuse(what: string, remedy?: string, writer?: XmlWriter): never {
  throw new XmlFault(what, remedy, writer)
}

/**
 * Accepts blocks `[begin, begin + length)` if there are some, they come at or after `next`, and end at or before
 * `most`.
 *
 * @returns their end
 */
export function checkedEnd(begin: number, length: number, next: number, most: number): number {
  const end = begin + length
  if (begin >= next && length > 0 && end <= most) return end
  if (length <= 0) refuse(`the run that begins at block ${begin} holds no block`)
  if (end > most) refuse(`blocks ${begin} to ${end - 1} are beyond 2^${Math.log2(most)}`)
  refuse(`block ${begin} comes when block ${next - 1} has been: runs have to ascend, and must not overlap`)
}

/** An opening tag. */
export class XmlElement {
  readonly name: string
  readonly #attributes: Record<string, string>

  constructor(name: string, attributes: Record<string, string>) {
    this.name = name
    this.#attributes = attributes
  }

  has(attribute: string): boolean {
    return this.#attributes[attribute] !== undefined
  }

  text(attribute: string): string {
    return this.#attributes[attribute] ?? refuse(`<${this.name}> lacks its attribute ${attribute}`)
  }

  /** A whole number from 0 to `most`, in its only valid form: digits, without a leading zero. */
  number(attribute: string, most: number): number {
    const text = this.text(attribute)
    const value = Number(text)
    if (!/^(0|[1-9][0-9]{0,15})$/.test(text) || value > most) throw this.#noNumber(attribute, String(most))
    return value
  }

  /** The same up to 2^64 - 1. */
  bigint(attribute: string): bigint {
    const text = this.text(attribute)
    if (!/^(0|[1-9][0-9]{0,19})$/.test(text) || BigInt(text) >= 2n ** 64n) throw this.#noNumber(attribute, '2^64 - 1')
    return BigInt(text)
  }

  optionalNumber(attribute: string, most: number): number | undefined {
    return this.has(attribute) ? this.number(attribute, most) : undefined
  }

  #noNumber(attribute: string, most: string): Error {
    const value = JSON.stringify(this.text(attribute).slice(0, 40))
    return new XmlFault(`${attribute} of <${this.name}> is ${value}, which is no whole number from 0 to ${most}`)
  }
}

/**
 * One kind of document: the order of its elements, and what it means. The methods take elements in order, and throw
 * (`refuse`) if one is wrong. They collect a batch; when it is `full`, the reader stops until it was taken.
 */
export interface Dialect<Header, Batch> {
  /**
   * Tags that the tools write by the million, to the byte: `<same begin="#" length="#"/>`, where # is a number.
   * Elements without content; opening and closing tags without attributes, of elements that hold none of their kind.
   */
  readonly patterns: readonly string[]
  /** A tag that looks like `patterns[pattern]`; the numbers are below 10^15, and valid during the call. */
  matched(pattern: number, numbers: Float64Array): void
  /** An opening tag, or one without content (then `closed` follows). */
  opened(element: XmlElement): void
  /** A closing tag; it closes the element that was opened last. */
  closed(): void
  /** The header; undefined until it is complete. */
  readonly header: Header | undefined
  /** The batch so far; undefined when there is nothing. */
  readonly waiting: Batch | undefined
  /** The batch has been taken, and its memory may be used again. */
  taken(): void
  /** Whether the batch must be taken before anything more is read. */
  readonly full: boolean
  /** Whether the document is complete: the root element is closed. */
  readonly complete: boolean
}

/** A document that is being read. */
export interface XmlDocument<Header, Batch> {
  readonly header: Header
  /** Ends only if the document has ended well: until then, the batches may be incomplete. Throws XmlInvalid. */
  readonly batches: AsyncIterable<Batch>
}

/**
 * Reads a document. Resolves after its header. A caller that does not read the batches then leaves the stream open.
 *
 * @throws XmlInvalid; what the stream throws
 */
export async function openXml<Header, Batch>(
  bytes: ByteStream,
  dialect: Dialect<Header, Batch>,
  options?: XmlOptions
): Promise<XmlDocument<Header, Batch>> {
  const steps = readSteps(bytes, dialect, options)
  while (dialect.header === undefined) await steps.next()
  return { header: dialect.header, batches: takeBatches(steps, dialect) }
}

async function* takeBatches<Batch>(
  steps: AsyncGenerator<void, void>,
  dialect: Dialect<unknown, Batch>
): AsyncGenerator<Batch> {
  try {
    do {
      for (let batch = dialect.waiting; batch !== undefined; batch = dialect.waiting) {
        yield batch
        dialect.taken()
      }
    } while (!(await steps.next()).done)
  } finally {
    await steps.return()
  }
}

/** Stops after each piece, and whenever the dialect is full. */
async function* readSteps(
  bytes: ByteStream,
  dialect: Dialect<unknown, unknown>,
  { name = 'the XML', quick = true }: XmlOptions = {}
): AsyncGenerator<void, void> {
  const reader = new XmlReader(dialect, name, quick)
  for await (const chunk of bytes) {
    for (let from = 0; from < chunk.length; from += PIECE_BYTES) {
      reader.feed(chunk.subarray(from, from + PIECE_BYTES))
      while (!reader.advance()) yield
      yield
    }
  }
  reader.end()
}

/**
 * A pattern, prepared for comparing four bytes at a time. For each stretch of text it has the length, then the bytes as
 * 32-bit integers. If the length is no multiple of four, the last integer also covers bytes before the stretch, and a
 * mask for it comes first. Between two stretches is a number.
 */
interface Pattern {
  index: number
  program: Int32Array
  /** The element that it opens or closes; neither for one without content. */
  opens: string | undefined
  closes: string | undefined
}

/** The options of saxes: names are names, also with a colon in them. */
type PlainNames = { position: false; xmlns?: false; defaultXMLVersion: '1.0'; forceXMLVersion: true }

class XmlReader {
  readonly #dialect: Dialect<unknown, unknown>
  readonly #name: string
  readonly #saxes: SaxesParser<PlainNames>
  readonly #decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })
  /** Patterns by their first byte after "<". */
  readonly #patterns: (Pattern[] | undefined)[] = new Array<undefined>(256).fill(undefined)
  readonly #numbers = new Float64Array(MAX_NUMBERS)

  /** The bytes to read: [#at, #end), and a 0 behind them. */
  readonly #buffer = new Uint8Array(MAX_MARKUP_BYTES + PIECE_BYTES + 4)
  readonly #view = new DataView(this.#buffer.buffer)
  #at = 0
  #end = 0
  /** The line at #at, and where in the buffer it begins (or how far before). */
  #line = 1
  #lineStart = 0

  /** Bytes of markup that saxes has got without its end, and where it begins. */
  #pending = 0
  #pendingFrom: XmlPosition = { line: 1, column: 1 }
  /** An element that was opened the quick way, so that saxes does not know it. */
  #untold: string | undefined
  /** Whether saxes repeats a tag that is known already. */
  #telling = false
  /** Whether saxes has just reached the end of a tag or comment. */
  #settled = false
  #begun = false

  constructor(dialect: Dialect<unknown, unknown>, name: string, quick: boolean) {
    this.#dialect = dialect
    this.#name = name
    this.#saxes = this.#parser()
    if (!quick) return
    for (const [index, text] of dialect.patterns.entries()) {
      const pattern = compile(text, index)
      const first = text.charCodeAt(1)
      this.#patterns[first] = [...(this.#patterns[first] ?? []), pattern]
    }
  }

  /** Takes the next bytes, at most PIECE_BYTES; all that came before must have been read as far as possible. */
  feed(piece: Uint8Array): void {
    const rest = this.#end - this.#at
    this.#buffer.copyWithin(0, this.#at, this.#end)
    this.#buffer.set(piece, rest)
    this.#lineStart -= this.#at
    this.#at = 0
    this.#end = rest + piece.length
    this.#buffer[this.#end] = 0
  }

  /** Reads on. False when the dialect is full, true when more bytes are needed. @throws XmlInvalid */
  advance(): boolean {
    return this.#placed(() => {
      const dialect = this.#dialect
      for (;;) {
        if (dialect.full) return false
        const between = this.#begun && this.#pending === 0
        if (between) {
          this.#skipSpace()
          if (this.#at === this.#end) return true
          if (this.#quick()) continue
        }
        if (!this.#plain()) return true
      }
    })
  }

  /** There are no more bytes. @throws XmlInvalid unless the document is complete */
  end(): void {
    this.#placed(() => {
      if (this.#pending === 0) this.#skipSpace()
      if (this.#pending > 0 || this.#at < this.#end) refuse('it ends in the middle of this')
      if (!this.#begun) refuse('it is empty')
      if (!this.#dialect.complete) refuse('it ends too early')
      this.#saxes.close()
    })
  }

  /** XML's white space between two tags. */
  #skipSpace(): void {
    const buffer = this.#buffer
    let at = this.#at
    for (;;) {
      const byte = buffer[at]
      if (byte === NEWLINE) {
        this.#line++
        this.#lineStart = at + 1
      } else if (byte !== SPACE && byte !== TAB && byte !== RETURN) break
      at++
    }
    this.#at = at
  }

  /** Reads one tag if it looks like a pattern. */
  #quick(): boolean {
    if (this.#buffer[this.#at] !== LESS) return false
    const patterns = this.#patterns[this.#buffer[this.#at + 1]]
    if (patterns === undefined) return false
    for (let i = 0; i < patterns.length; i++) {
      const pattern = patterns[i]
      const end = this.#match(pattern.program)
      if (end < 0) continue
      if (pattern.closes !== undefined) {
        // Close it for saxes too, if saxes knows it.
        if (this.#untold !== pattern.closes) return false
        this.#untold = undefined
      }
      this.#dialect.matched(pattern.index, this.#numbers)
      if (pattern.opens !== undefined) this.#untold = pattern.opens
      this.#at = end
      return true
    }
    return false
  }

  /**
   * The end of the tag at #at if it looks like this, with its numbers stored; otherwise -1. The 0 behind the last byte
   * matches nothing.
   */
  #match(program: Int32Array): number {
    const buffer = this.#buffer
    const view = this.#view
    let at = this.#at
    let found = 0
    for (let i = 0; ;) {
      const length = program[i++]
      const end = at + length
      for (; at + 4 <= end; at += 4) if (view.getInt32(at, true) !== program[i++]) return -1
      if (at < end) {
        if ((view.getInt32(end - 4, true) & program[i++]) !== program[i++]) return -1
        at = end
      }
      if (i === program.length) return at
      let value = buffer[at] - ZERO
      if (value >>> 0 > 9) return -1
      const start = at++
      if (value !== 0) {
        let digit = buffer[at] - ZERO
        // Nine digits are a 32-bit integer, which is faster.
        while (digit >>> 0 <= 9 && at - start < 9) {
          value = (Math.imul(value, 10) + digit) | 0
          digit = buffer[++at] - ZERO
        }
        while (digit >>> 0 <= 9) {
          value = value * 10 + digit
          digit = buffer[++at] - ZERO
        }
        if (at - start > MAX_DIGITS) return -1
      }
      this.#numbers[found++] = value
    }
  }

  /** Lets saxes read up to the next ">", if there is one. */
  #plain(): boolean {
    const found = this.#buffer.indexOf(GREATER, this.#at)
    const whole = found >= 0 && found < this.#end
    const length = (whole ? found + 1 : this.#end) - this.#at
    if (this.#pending + length > MAX_MARKUP_BYTES) refuse(`this goes on for more than ${MAX_MARKUP_BYTES / 1024} KiB`)
    if (!whole) return false
    if (this.#untold !== undefined) this.#tell(`<${this.#untold}>`)
    this.#untold = undefined
    this.#settled = false
    this.#saxes.write(this.#decode(this.#buffer.subarray(this.#at, found + 1)))
    this.#begun = true
    if (!this.#settled && this.#pending === 0) this.#pendingFrom = this.#position()
    this.#pending = this.#settled ? 0 : this.#pending + length
    for (let i = this.#at; i <= found; i++) {
      if (this.#buffer[i] !== NEWLINE) continue
      this.#line++
      this.#lineStart = i + 1
    }
    this.#at = found + 1
    return true
  }

  /** Tells saxes of a tag that was read without it. */
  #tell(tag: string): void {
    this.#telling = true
    this.#saxes.write(tag)
    this.#telling = false
  }

  #decode(bytes: Uint8Array): string {
    try {
      return this.#decoder.decode(bytes)
    } catch {
      return refuse('this is no UTF-8')
    }
  }

  #parser(): SaxesParser<PlainNames> {
    // XML 1.1 has other white space; a document that declares it is read as 1.0.
    const saxes = new SaxesParser<PlainNames>({ position: false, defaultXMLVersion: '1.0', forceXMLVersion: true })
    saxes.on('error', ({ message }) => refuse(`this is not well-formed XML: ${message.replace(/\.$/, '')}`))
    saxes.on('xmldecl', ({ encoding }) => {
      if (encoding !== undefined && !/^(utf-8|us-ascii)$/i.test(encoding))
        refuse(`its encoding is ${encoding}, not UTF-8`)
      this.#settled = true
    })
    saxes.on('doctype', () => refuse('it has a document type declaration, which no tool writes'))
    saxes.on('processinginstruction', () => refuse('this is a processing instruction, which no tool writes'))
    saxes.on('cdata', () => refuse('this is a CDATA section, which no tool writes'))
    saxes.on('comment', () => {
      this.#settled = true
    })
    saxes.on('text', (text) => {
      if (/[^ \t\r\n]/.test(text)) refuse(`${JSON.stringify(text.trim().slice(0, 40))} stands between the tags`)
    })
    saxes.on('opentag', ({ name, attributes }) => {
      this.#settled = true
      if (!this.#telling) this.#dialect.opened(new XmlElement(name, attributes))
    })
    saxes.on('closetag', () => {
      this.#settled = true
      this.#dialect.closed()
    })
    return saxes
  }

  /** Runs `read`, and adds the position to its errors. */
  #placed<T>(read: () => T): T {
    try {
      return read()
    } catch (error) {
      if (!(error instanceof XmlFault)) throw error
      const position = this.#pending > 0 ? this.#pendingFrom : this.#position()
      throw new XmlInvalid(this.#name, position, error)
    }
  }

  #position(): XmlPosition {
    return { line: this.#line, column: this.#at - this.#lineStart + 1 }
  }
}

function compile(text: string, index: number): Pattern {
  const program: number[] = []
  for (const stretch of text.split('#')) {
    const bytes = Buffer.from(stretch)
    const whole = bytes.length - (bytes.length % 4)
    program.push(bytes.length)
    for (let at = 0; at < whole; at += 4) program.push(bytes.readInt32LE(at))
    if (whole === bytes.length) continue
    // The rest as the upper bytes of an integer, which lie at the higher addresses.
    const shift = 8 * (4 - (bytes.length - whole))
    const rest = bytes.readUIntLE(whole, bytes.length - whole)
    program.push(-1 << shift, rest << shift)
  }
  const [, slash, name] = /^<(\/?)([a-z_]+)/.exec(text) ?? []
  return {
    index,
    program: Int32Array.from(program),
    opens: slash === '' && !text.endsWith('/>') ? name : undefined,
    closes: slash === '/' ? name : undefined
  }
}
