/** Lives, up to the first that fails, for whoever has taken a guard away (mutate.ts): says in JSON what came of them. */
import { Catalogs, liveOn } from './run.ts'

const [seed, lives] = process.argv.slice(2).map(Number)
using catalogs = new Catalogs()
const { lives: lived, failed } = await liveOn(seed, lives, catalogs)
const found = failed && { seed: failed.life.seed, violation: failed.result.violation }
console.log(JSON.stringify({ lives: lived, ...found }))
