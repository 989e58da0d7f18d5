/**
 * deltamapper.v1.Inventory: what a node has and can do, and what stands in the way. What the fields mean stands in
 * protos/deltamapper/v1/inventory.proto, and their types are generated from it; here they are plain objects (plain.ts).
 */
import type { Message } from '@bufbuild/protobuf'
import type { sendUnaryData, ServerUnaryCall, ServiceDefinition } from '@grpc/grpc-js'
import type { Logger } from 'pino'
import { asDeltamapperError } from '../errors.ts'
import { ExaminationSchema, Inventory } from './generated/deltamapper/v1/inventory_pb.ts'
import { fromPlain } from './plain.ts'
import { toStatus } from './status.ts'
import { unaryMethod } from './method-definitions.ts'
import { type PlainResponse, UnaryClient } from './unary.ts'

const { examine } = Inventory.method

/** On the wire. Parts may be missing in what another version has sent. */
export type WireExamination = PlainResponse<typeof examine>

/** What answers. */
export interface InventoryBackend {
  examine(): Promise<WireExamination>
}

export class InventoryService {
  static readonly definition: ServiceDefinition = { [examine.name]: unaryMethod(examine) }

  readonly implementation: Record<
    string,
    (call: ServerUnaryCall<Message, Message>, respond: sendUnaryData<Message>) => void
  >

  constructor(backend: InventoryBackend, logger: Logger) {
    this.implementation = {
      [examine.name]: (_call, respond) => {
        const begin = performance.now()
        const answer = async () => {
          const examination = await backend.examine()
          return { findings: examination.findings.length, message: fromPlain(ExaminationSchema, examination) }
        }
        answer().then(
          ({ findings, message }) => {
            logger.info({ method: 'Examine', status: 'OK', findings, durationMs: since(begin) }, 'inventory call')
            respond(null, message)
          },
          (thrown: unknown) => {
            const error = asDeltamapperError(thrown)
            logger.error(
              { method: 'Examine', status: error.status, err: error, durationMs: since(begin) },
              'inventory call'
            )
            respond(toStatus(error), null)
          }
        )
      }
    }
  }
}

/**
 * Asks the agent at an address.
 *
 * @throws what `UnaryClient` and its calls throw
 */
export async function askInventory(
  address: string,
  options: { deadlineMs: number; signal?: AbortSignal }
): Promise<WireExamination> {
  const client = new UnaryClient(address, 'an agent gives its inventory on those only', {
    what: 'gives no inventory',
    remedy: 'name the unix socket of a deltamapper agent, and update it if it is older than this command'
  })
  try {
    return await client.ask(examine, {}, options)
  } finally {
    client.close()
  }
}

function since(begin: number): number {
  return Math.round((performance.now() - begin) * 100) / 100
}
