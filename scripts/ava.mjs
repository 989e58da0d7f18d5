/**
 * ava's command line, with TAP that shows every failure. Its own TAP reporter ends the whole run, and hides all tests after it,
 * - at an error without frames in its stack: it writes them as YAML, which has no word for undefined;
 * - when a file's time is up, or it ends its process: it takes its own error for one that a worker has sent.
 *
 *   node scripts/ava.mjs [what ava takes]
 */
import { createRequire } from 'node:module'
import TapReporter from '../node_modules/ava/lib/reporters/tap.js'

const yaml = createRequire(import.meta.resolve('supertap'))('js-yaml')
const { safeDump } = yaml
yaml.safeDump = (value, options) => safeDump(value, { ...options, skipInvalid: true })

const { writeTest } = TapReporter.prototype
TapReporter.prototype.writeTest = function (event, flags) {
  const { err } = event
  const isOwn = err instanceof Error && !('originalError' in err)
  const sent = isOwn ? { type: 'native', name: err.name, stack: err.stack, originalError: err } : err
  return writeTest.call(this, { ...event, err: sent }, flags)
}

await import('../node_modules/ava/entrypoints/cli.mjs')
