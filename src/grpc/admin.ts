/**
 * deltamapper.v1.Admin: the pools that an agent makes and drives itself, and the volumes that it has dm-era track. What
 * the calls mean stands in protos/deltamapper/v1/admin.proto, and their types are generated from it; here they are
 * plain objects (plain.ts).
 */
import type { DescMethodUnary, Message } from '@bufbuild/protobuf'
import type { sendUnaryData, ServerUnaryCall, ServiceDefinition } from '@grpc/grpc-js'
import type { Logger } from 'pino'
import { asDeltamapperError, DeltamapperError, invalid, shuttingDown } from '../errors.ts'
import { Admin } from './generated/deltamapper/v1/admin_pb.ts'
import { CountBeyond, fromPlain, toPlain } from './plain.ts'
import { settledWithin } from './settled.ts'
import { toStatus } from './status.ts'
import { methodsOf, unaryMethod } from './method-definitions.ts'
import type { PlainRequest, PlainResponse } from './unary.ts'

type Methods = (typeof Admin)['method']

/** `createPool` for CreatePool. */
export type AdminMethod = keyof Methods
export type AdminRequest<M extends AdminMethod> = PlainRequest<Methods[M]>
export type AdminResponse<M extends AdminMethod> = PlainResponse<Methods[M]>

/**
 * What answers. Left out, a text is empty and a flag is false. Methods throw DeltamapperErrors, and carry through what
 * they have begun.
 */
export type AdminBackend = { [M in AdminMethod]: (request: AdminRequest<M>) => Promise<AdminResponse<M>> }

export const adminMethods = methodsOf(Admin)

export class AdminService {
  static readonly definition: ServiceDefinition = Object.fromEntries(
    adminMethods.map(([, method]) => [method.name, unaryMethod(method)])
  )

  readonly implementation: Record<string, (call: ServerUnaryCall<Message, Message>, respond: Respond) => void>
  readonly #logger: Logger
  readonly #running = new Set<Promise<void>>()
  #stopping = false

  constructor(backend: AdminBackend, logger: Logger) {
    this.#logger = logger
    this.implementation = Object.fromEntries(
      adminMethods.map(([name, method]) => [
        method.name,
        ({ request }: ServerUnaryCall<Message, Message>, respond: Respond) => {
          const answer = (plain: object) => backend[name](plain as never)
          const run = this.#run(method, request, answer).then((result) => {
            if (result instanceof DeltamapperError) respond(toStatus(result), null)
            else respond(null, result)
          })
          this.#running.add(run)
          void run.finally(() => this.#running.delete(run))
        }
      ])
    )
  }

  /**
   * Refuses new calls from now on. Resolves when those under way have ended, or after `graceMs`; nothing can end them
   * early.
   */
  async drain(graceMs: number): Promise<void> {
    this.#stopping = true
    await settledWithin(this.#running, graceMs)
  }

  /** One call with its log line. Never rejects. */
  async #run(method: DescMethodUnary, message: Message, answer: (request: object) => Promise<object>): Promise<Answer> {
    const begin = performance.now()
    let request: object | undefined
    let result: Answer
    try {
      request = requestOf(method, message)
      if (this.#stopping) throw shuttingDown('the agent is stopping', 'call again once it is back')
      result = fromPlain(method.output, (await answer(request)) as never)
    } catch (error) {
      result = asDeltamapperError(error)
    }
    const failure = result instanceof DeltamapperError ? result : undefined
    const fields = {
      method: method.localName,
      request: request && loggable(request),
      status: failure?.status ?? 'OK',
      ...(failure && { code: failure.code, reason: failure.line }),
      durationMs: Math.round((performance.now() - begin) * 100) / 100
    }
    if (failure?.status === 'INTERNAL') this.#logger.error({ ...fields, err: failure.cause ?? failure }, 'admin call')
    else this.#logger.info(fields, 'admin call')
    return result
  }
}

/** Of bytes only how many there are. */
function loggable(request: object): object {
  const logged = Object.entries(request).map(([name, value]: [string, unknown]) => {
    return [name, value instanceof Uint8Array ? value.length : value] as const
  })
  return Object.fromEntries(logged)
}

type Respond = sendUnaryData<Message>
type Answer = Message | DeltamapperError

/** @throws DM_ARGUMENT_INVALID */
function requestOf(method: DescMethodUnary, message: Message): object {
  try {
    return toPlain(method.input, message as never)
  } catch (error) {
    if (!(error instanceof CountBeyond)) throw error
    throw invalid(`${error.field} is ${error.digits}`, 'give a whole number below 2^53')
  }
}
