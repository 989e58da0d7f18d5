/** Preloaded (`node --import`) where a guard of the product is to be missing: DELTAMAPPER_MUTANT names it. */
import { registerHooks } from 'node:module'
import { mutants } from './mutants.ts'

const mutant = mutants.find(({ name }) => name === process.env['DELTAMAPPER_MUTANT'])
if (mutant) {
  const url = new URL(`../../${mutant.file}`, import.meta.url).href
  registerHooks({
    load(loaded, context, nextLoad) {
      const module = nextLoad(loaded, context)
      if (loaded !== url) return module
      const source = Buffer.from(module.source as Uint8Array).toString()
      if (source.split(mutant.from).length !== 2) throw new Error(`the guard ${mutant.name} is not where it was`)
      return { ...module, source: source.replace(mutant.from, () => mutant.to) }
    }
  })
}
