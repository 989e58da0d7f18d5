/**
 * Compresses one frame after the other, beside the thread that asks. One compressor for all of them: to make one takes
 * longer than a frame does.
 */
import { constants, createZstdCompress } from 'node:zlib'

/** A slower level would find little more in runs. */
const COMPRESSION = { params: { [constants.ZSTD_c_compressionLevel]: 1 }, chunkSize: 2 ** 16 }

export class FrameCompressor {
  readonly #stream = createZstdCompress(COMPRESSION)
  #parts: Buffer[] = []
  #last: Promise<unknown> = Promise.resolve()

  constructor() {
    this.#stream.on('data', (part: Buffer) => this.#parts.push(part))
  }

  /** Compresses to a frame of Zstandard by itself, once those before are done; `raw` must not change until then. */
  async compress(raw: Buffer): Promise<Buffer> {
    const frame = this.#last.then(() => this.#compress(raw))
    this.#last = frame.catch(() => undefined)
    return frame
  }

  close(): void {
    this.#stream.destroy()
  }

  async #compress(raw: Buffer): Promise<Buffer> {
    if (this.#stream.destroyed) throw new Error('its compressor has failed')
    await new Promise<void>((resolve, reject) => {
      this.#stream.once('error', reject)
      this.#stream.write(raw)
      this.#stream.flush(constants.ZSTD_e_end, () => {
        this.#stream.off('error', reject)
        resolve()
      })
    })
    const [first, ...others] = this.#parts
    this.#parts = []
    return others.length === 0 ? first : Buffer.concat([first, ...others])
  }
}
