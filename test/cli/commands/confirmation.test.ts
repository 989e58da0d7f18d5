import { spawn } from 'node:child_process'
import { once } from 'node:events'
import test from 'ava'
import { adminAgent, adminAgents } from '../admin-agent.ts'
import { command, complaint } from '../run-command.ts'

const { order } = adminAgents(test)

/** What destroys something, what it calls, and what it says of that. */
const destructive: [string[], string, RegExp][] = [
  [['volume', 'delete', 'tank/documents'], 'deleteVolume', /volume tank\/documents is deleted with all data in it/],
  [['volume', 'forget', 'tank/documents'], 'forgetThin', /record of tank\/documents is struck off/],
  [['snapshot', 'delete', 'tank/monday'], 'deleteSnapshot', /snapshot tank\/monday is deleted/],
  [['pool', 'remove', 'tank', '--wipe'], 'removePool', /start of both of its devices overwritten/],
  [['pool', 'accept', 'tank'], 'acceptKernel', /pool tank is taken as the kernel has it/],
  [['era', 'detach', 'srv'], 'detachEra', /history of volume srv is forgotten/],
  [['era', 'activate', 'srv', '--start-over'], 'activateEra', /history of volume srv is given up/]
]

for (const [words, , what] of destructive) {
  test(`without a terminal, ${words.join(' ')} has to be told --yes, and asks the agent nothing before`, async (t) => {
    const result = await order(...words)
    t.is(result.status, 2)
    t.is(result.stdout, '')
    t.regex(complaint(result), what)
    t.regex(complaint(result), /no terminal to ask on; say --yes/)
    t.deepEqual(result.calls, [])
  })
}

for (const [words, method, what] of destructive) {
  test(`on a terminal, ${words.join(' ')} asks first`, async (t) => {
    for (const [answer, status, calls] of [
      ['y\n', 0, [method]],
      ['YES\n', 0, [method]],
      ['n\n', 1, []],
      ['\n', 1, []],
      ['yesterday\n', 1, []],
      // Ctrl-D and Ctrl-C.
      ['\x04', 130, []],
      ['\x03', 130, []]
    ] as const) {
      const seen = await onTerminal(words, answer)
      t.regex(seen.shown, what)
      t.regex(seen.shown, /, for good\. Go on\? \[y\/N\] /)
      t.is(seen.status, status, JSON.stringify(answer))
      t.deepEqual<unknown, unknown>(seen.calls, calls, JSON.stringify(answer))
    }
  })
}

/** Runs a command on a pseudo-terminal of its own, and types an answer once it asks. */
async function onTerminal(words: readonly string[], answer: string) {
  const agent = await adminAgent()
  try {
    const quoted = [process.execPath, command, ...words, '--endpoint', agent.endpoint].map((word) => `'${word}'`)
    // `script` (util-linux) makes the terminal, and ends with the status of what ran on it.
    const child = spawn('script', ['--quiet', '--return', '--command', quoted.join(' '), '/dev/null'], {
      stdio: ['pipe', 'pipe', 'inherit']
    })
    let shown = ''
    let asked = false
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      shown += text
      if (asked || !shown.includes('[y/N]')) return
      asked = true
      child.stdin.write(answer)
    })
    const [status] = (await once(child, 'close')) as [number | null]
    return { shown, status, calls: agent.calls.map(([method]) => method) }
  } finally {
    await agent.stop()
  }
}
