#!/usr/bin/env -S node --max-semi-space-size=1
/**
 * The `deltamapper` command, in a checkout and in the published package alike: a checkout runs the TypeScript sources, the package (which
 * ships none, since Node strips no types below node_modules) what was compiled from them.
 *
 * The flag above keeps V8's young generation small. Each message of a stream is garbage as soon as it is sent; the buffers lie outside of V8's
 * heap, and are freed when the young generation is collected: with its usual size an agent takes 60 MiB more on a long stream, and is no faster.
 *
 * This file must be readable for every Node there is: it is what says that a newer one is needed.
 */
import { spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import module from 'node:module'
import { fileURLToPath } from 'node:url'

const oldestNode = 24
const smallYoungGeneration = '--max-semi-space-size=1'
const sources = new URL('../src/cli/main.ts', import.meta.url)
const checkoutNode = fileURLToPath(new URL('../node_modules/node/bin/node', import.meta.url))
const isCheckout = existsSync(sources)

// All of these threads are started by the first use of one. Walks read through the kernel's queue, so that an agent needs them for little: files,
// and devices that make a read wait, of which each may keep one thread for each walker (src/devicemapper/read-queue.ts). With `reads: preadv`
// walks read through them, a window of requests at once: an agent that does so wants 128. A command reads one device at a time.
process.env.UV_THREADPOOL_SIZE ??= process.argv[2] === 'agent' ? '12' : '32'

if (Number.parseInt(process.versions.node, 10) >= oldestNode) {
  // Halves the time that a command takes to start: types need not be stripped again each time. Threads and child processes only
  // learn of it from the environment.
  if (isCheckout) {
    process.env.NODE_COMPILE_CACHE ??= fileURLToPath(new URL('../.cache/compiled', import.meta.url))
    module.enableCompileCache(process.env.NODE_COMPILE_CACHE)
  }
  const { main } = await import(isCheckout ? sources.href : '../dist/src/cli/main.js')
  await main(process.argv.slice(2))
} else if (isCheckout && existsSync(checkoutNode)) {
  runWith(checkoutNode)
} else {
  const remedy = isCheckout
    ? 'run `node scripts/setup.mjs`, which brings one for this checkout'
    : 'install it from https://nodejs.org'
  console.error(
    `deltamapper: it needs Node.js ${oldestNode} or later, and this is ${process.version}; ${remedy} (DM_CONFIG_INVALID)`
  )
  process.exitCode = 1
}

/** Runs this very command with another Node, and ends as that ends. */
function runWith(node) {
  const child = spawn(node, [smallYoungGeneration, ...process.argv.slice(1)], { stdio: 'inherit' })
  // A terminal sends Ctrl-C to both processes by itself; a second one would end the child at once.
  process.on('SIGINT', () => process.stdin.isTTY || child.kill('SIGINT'))
  process.on('SIGTERM', () => child.kill('SIGTERM'))
  process.on('SIGHUP', () => child.kill('SIGHUP'))
  child.on('error', (error) => {
    console.error(
      `deltamapper: ${node} cannot be run: ${error.message}; run \`node scripts/setup.mjs\` (DM_CONFIG_INVALID)`
    )
    process.exitCode = 1
  })
  child.on('exit', (status, signal) => {
    if (signal === null) process.exit(status)
    for (const each of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.removeAllListeners(each)
    process.kill(process.pid, signal)
  })
}
