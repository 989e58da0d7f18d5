/**
 * Lives, up to the first that fails, in a process of their own: many go on at once, and one may lack a guard (mutate.ts). Says in JSON what
 * came of them.
 */
import { Catalogs, isWorld, liveOn, type ProcessTotals } from './run.ts'
import { isTheme } from './world/themes.ts'

const [world = '', seed, lives, theme = ''] = process.argv.slice(2)
if (!isWorld(world)) throw new Error(`there is no world ${world}`)
using catalogs = new Catalogs()
const cpu = process.cpuUsage()
const {
  lives: lived,
  turns,
  outcomes,
  failed
} = await liveOn(world, Number(seed), Number(lives), catalogs, isTheme(theme) ? theme : undefined)
const { user, system } = process.cpuUsage(cpu)
const totals: ProcessTotals = {
  lives: lived,
  turns,
  outcomes: [...outcomes],
  cpuSeconds: (user + system) / 1e6,
  ...(failed && { seed: failed.life.seed, violation: failed.result.violation })
}
console.log(JSON.stringify(totals))
