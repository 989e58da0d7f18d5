/**
 * How a helper process ends once its work is done, or its parent is gone: it kills itself with SIGKILL.
 *
 * `process.exit` waits for V8's threads. One of them may wait for a garbage collection in the main thread, and then
 * keeps the process for ever (nodejs/node#54918). A lease keeper that hangs like this seems to be at work, and nobody
 * gets that pool's metadata snapshot until somebody kills it. What a helper must leave behind is on disk or in the
 * kernel before it calls this.
 */
export function endAtOnce(): never {
  process.kill(process.pid, 'SIGKILL')
  // Not reached: the kernel delivers it before the call returns.
  return process.exit(1)
}
