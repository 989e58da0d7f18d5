/**
 * The services of our own, deltamapper.v1.Admin and Inventory: unary calls between plain objects (plain.ts). They give
 * orders, or name volumes and devices; who may open the socket may call them, so they are on unix sockets only.
 */
import type { DescMessage, DescMethodUnary, Message, MessageShape } from '@bufbuild/protobuf'
import { Client, credentials, type ServiceError, status } from '@grpc/grpc-js'
import { DeltamapperError, invalid } from '../errors.ts'
import { parseConnectAddress } from './address.ts'
import { unaryMethod } from './method-definitions.ts'
import { CountBeyond, fromPlain, type Plain, toPlain } from './plain.ts'
import { fromStatus } from './status.ts'

/** Lists of many thousand volumes and snapshots come in one message. */
const MAXIMUM_MESSAGE_BYTES = 64 * 1024 * 1024

export type PlainRequest<Method extends { input: DescMessage }> = Plain<MessageShape<Method['input']>>
export type PlainResponse<Method extends { output: DescMessage }> = Plain<MessageShape<Method['output']>>

/** A client of one such service. Connects with the first call. */
export class UnaryClient {
  /** As in `unix:///run/deltamapper/agent.sock`. */
  readonly address: string
  readonly #client: Client
  readonly #unserved: { readonly what: string; readonly remedy: string }

  /**
   * @param only why an address that is no unix socket is none for this service, as a clause
   * @param unserved what to say of a server that does not have it
   * @throws DM_CONFIG_INVALID for an address that is none, or not of a unix socket
   */
  constructor(address: string, only: string, unserved: { readonly what: string; readonly remedy: string }) {
    const parsed = parseConnectAddress(address)
    if (parsed.kind !== 'unix') {
      throw new DeltamapperError(
        'DM_CONFIG_INVALID',
        `${parsed.text} is no unix socket, and ${only}`,
        'name its socket, as in unix:///run/deltamapper/agent.sock'
      )
    }
    this.address = parsed.text
    this.#unserved = unserved
    this.#client = new Client(`unix:${parsed.path}`, credentials.createInsecure(), {
      'grpc.max_receive_message_length': MAXIMUM_MESSAGE_BYTES,
      // What changes something is not to be done twice.
      'grpc.enable_retries': 0,
      'grpc.use_local_subchannel_pool': 1,
      'grpc.enable_http_proxy': 0,
      'grpc.enable_channelz': 0
    })
  }

  /**
   * @throws the server's error; DM_UNREACHABLE when nothing answers; DM_SERVER_FAILED when it has no such service;
   *   DM_ANSWER_INVALID; DM_DEADLINE_EXCEEDED; the signal's reason
   */
  async ask<Input extends DescMessage, Output extends DescMessage>(
    method: DescMethodUnary<Input, Output>,
    request: Plain<MessageShape<Input>>,
    { deadlineMs, signal }: { readonly deadlineMs?: number; readonly signal?: AbortSignal | undefined } = {}
  ): Promise<Plain<MessageShape<Output>>> {
    const { path, requestSerialize, responseDeserialize } = unaryMethod(method)
    const message = requestOf(method.input, request)
    const answer = await new Promise<Message>((resolve, reject) => {
      const options = deadlineMs === undefined ? {} : { deadline: Date.now() + deadlineMs }
      const answered = (error: ServiceError | null, response?: Message) => {
        if (!error) resolve(response!)
        else if (signal?.aborted) reject(signal.reason as Error)
        else if (error.code === status.UNIMPLEMENTED) reject(this.#notServed())
        else reject(fromStatus(error, this.address))
      }
      const call = this.#client.makeUnaryRequest(
        path,
        requestSerialize,
        responseDeserialize,
        message,
        options,
        answered
      )
      const cancel = () => call.cancel()
      signal?.addEventListener('abort', cancel, { once: true })
      if (signal?.aborted) cancel()
    })
    try {
      return toPlain(method.output, answer as MessageShape<Output>)
    } catch (error) {
      if (!(error instanceof CountBeyond)) throw error
      throw new DeltamapperError(
        'DM_ANSWER_INVALID',
        `the answer has a count of ${error.digits}, beyond 2^53`,
        'update deltamapper'
      )
    }
  }

  /** Ends every call and closes the connection. What was begun is carried on by the server. */
  close(): void {
    this.#client.close()
  }

  /** No error of ours has the status UNIMPLEMENTED: it is another server, or an older agent. */
  #notServed(): DeltamapperError {
    return new DeltamapperError('DM_SERVER_FAILED', `${this.address} ${this.#unserved.what}`, this.#unserved.remedy)
  }
}

/** @throws DM_ARGUMENT_INVALID for a count that is none */
function requestOf<Input extends DescMessage>(schema: Input, request: Plain<MessageShape<Input>>): MessageShape<Input> {
  try {
    return fromPlain(schema, request)
  } catch (error) {
    if (!(error instanceof CountBeyond)) throw error
    throw invalid(error.message, 'give a whole number')
  }
}
