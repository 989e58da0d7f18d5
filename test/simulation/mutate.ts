/** Preloaded (`node --import`) where guards of the product are to be missing: DELTAMAPPER_MUTANTS names them, with commas in between. */
import { registerHooks } from 'node:module'
import { mutants } from './mutants.ts'

const names = (process.env['DELTAMAPPER_MUTANTS'] ?? '').split(',').filter((name) => name !== '')
const missing = names.map((name) => {
  const mutant = mutants.find((each) => each.name === name)
  if (!mutant) throw new Error(`there is no guard ${name}`)
  return { ...mutant, url: new URL(`../../${mutant.file}`, import.meta.url).href }
})
if (missing.length > 0) {
  registerHooks({
    load(loaded, context, nextLoad) {
      const module = nextLoad(loaded, context)
      const here = missing.filter(({ url }) => url === loaded)
      if (here.length === 0) return module
      let source = Buffer.from(module.source as Uint8Array).toString()
      for (const { name, from, to } of here) {
        if (source.split(from).length !== 2) throw new Error(`the guard ${name} is not where it was`)
        source = source.replace(from, () => to)
      }
      return { ...module, source }
    }
  })
}
