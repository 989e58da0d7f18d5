/**
 * A process that writes to a catalog until it is killed: `catalog-writer.ts PATH SEED SKIP`. One letter on standard output for each
 * operation that was acknowledged; `!` and the error's line when the catalog cannot go on.
 */
import { writeSync } from 'node:fs'
import { openCatalog } from '../../../src/agent/catalog/catalog.ts'
import { asDeltamapperError } from '../../../src/errors.ts'
import { carryOut, operations } from './operations.ts'

const [path, seed, skip] = process.argv.slice(2)

try {
  const catalog = await openCatalog(path)
  writeSync(1, 'o')
  let index = 0
  for (const operation of operations(Number(seed))) {
    if (index++ < Number(skip)) continue
    await carryOut(operation, catalog)
    writeSync(1, '.')
  }
} catch (error) {
  writeSync(1, `!${asDeltamapperError(error).line}\n`)
}
