/** Lives, up to the first that fails, for whoever has taken a guard away (mutate.ts): says in JSON what came of them. */
import { Catalogs, isWorld, liveOn } from './run.ts'

const [world = '', seed, lives] = process.argv.slice(2)
if (!isWorld(world)) throw new Error(`there is no world ${world}`)
using catalogs = new Catalogs()
const { lives: lived, failed } = await liveOn(world, Number(seed), Number(lives), catalogs)
const found = failed && { seed: failed.life.seed, violation: failed.result.violation }
console.log(JSON.stringify({ lives: lived, ...found }))
