/**
 * The helper process: runs device-mapper calls for its parent, one at a time, and blocks as long as the kernel does.
 *
 * It is a process and not a thread because a call that the kernel does not return from cannot be cancelled: a thread
 * would keep its whole process from ever ending. It holds no state that matters; its parent may kill it at any moment.
 */
import { type Call, CallFailed, type CallOutcome, type HelperConfiguration, type Reply, type Request } from './call.ts'
import { endAtOnce } from './end-at-once.ts'
import { Libdevmapper } from './libdevmapper.ts'

const configuration = JSON.parse(process.argv[2] ?? '') as HelperConfiguration
let library: Libdevmapper | undefined

function outcomeOf(call: Call): CallOutcome {
  try {
    library ??= new Libdevmapper(configuration)
    return library.perform(call)
  } catch (error) {
    if (error instanceof CallFailed) return { failure: error.failure, notices: [] }
    throw error
  }
}

const parent = Number(process.argv[3])
process.on('message', (request: Request) => {
  // Messages that the parent sent before its death arrive before the news of it. Do not run them: the parent's
  // successor has looked at the devices by then, and does not expect another suspension.
  if (process.ppid !== parent) endAtOnce()
  process.send?.({ id: request.id, outcomes: request.calls.map(outcomeOf) } satisfies Reply)
})
// The parent is gone, for any reason. Signals for the parent (Ctrl-C in a terminal) are not ours to act on: it decides.
process.on('disconnect', endAtOnce)
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => undefined)
process.send?.('ready')
