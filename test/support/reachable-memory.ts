/**
 * What a process still refers to, in bytes, once garbage has been collected: what a leak grows by, and nothing else. The memory that a process
 * holds says less, since V8 and malloc keep some of what was freed for as long as they like.
 */
import { once } from 'node:events'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'

interface Message {
  readonly id?: number
  readonly method?: string
  readonly params?: { sessionId: string; message: string }
  readonly result?: { result?: { value: number } }
}

const measure = 'process.memoryUsage().heapUsed + process.memoryUsage().external'

/** Of the thread that asks. */
export function reachableHere(): number {
  setFlagsFromString('--expose-gc')
  const collect = runInNewContext('gc') as () => void
  collect()
  const { heapUsed, external } = process.memoryUsage()
  return heapUsed + external
}

/** Of another process, with all its threads: asked through its inspector (`node --inspect=127.0.0.1:0`). */
export class InspectedMemory {
  readonly #socket: WebSocket
  readonly #workers = new Set<string>()
  readonly #waiting = new Map<number, (message: Message) => void>()
  #asked = 0

  private constructor(socket: WebSocket) {
    this.#socket = socket
    socket.addEventListener('message', ({ data }) => this.#received(JSON.parse(data as string) as Message))
  }

  /** @param address as the process says it on stderr, `ws://…` */
  static async connect(address: string): Promise<InspectedMemory> {
    const socket = new WebSocket(address)
    await once(socket, 'open')
    const memory = new InspectedMemory(socket)
    await memory.#ask('NodeWorker.enable', { waitForDebuggerOnStart: false })
    return memory
  }

  async reachable(): Promise<number> {
    let bytes = 0
    for (const thread of [undefined, ...this.#workers]) {
      await this.#ask('HeapProfiler.collectGarbage', {}, thread)
      const { result } = await this.#ask('Runtime.evaluate', { expression: measure }, thread)
      bytes += result?.result?.value ?? Number.NaN
    }
    return bytes
  }

  close(): void {
    this.#socket.close()
  }

  async #ask(method: string, params: object, thread?: string): Promise<Message> {
    const id = ++this.#asked
    const answer = new Promise<Message>((resolve) => this.#waiting.set(id, resolve))
    const message = { id, method, params }
    const sent =
      thread === undefined
        ? message
        : {
            id: ++this.#asked,
            method: 'NodeWorker.sendMessageToWorker',
            params: { sessionId: thread, message: JSON.stringify(message) }
          }
    this.#socket.send(JSON.stringify(sent))
    return answer
  }

  #received({ id, method, params, ...rest }: Message): void {
    if (method === 'NodeWorker.attachedToWorker') this.#workers.add(params!.sessionId)
    else if (method === 'NodeWorker.detachedFromWorker') this.#workers.delete(params!.sessionId)
    else if (method === 'NodeWorker.receivedMessageFromWorker') this.#received(JSON.parse(params!.message) as Message)
    else if (id !== undefined) {
      this.#waiting.get(id)?.(rest)
      this.#waiting.delete(id)
    }
  }
}
