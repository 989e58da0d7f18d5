/**
 * How a helper process ends once its work is done, or its parent is gone: by SIGKILL from its own hand.
 *
 * `process.exit` waits for V8's threads, and one of them that waits for a garbage collection in the main thread then keeps the process for ever
 * (nodejs/node#54918). A lease's keeper that hangs like this looks as if it were still at work, and nobody gets that pool's metadata snapshot
 * until somebody kills it. What a helper has to leave behind is on disk or in the kernel before it calls this.
 */
export function endAtOnce(): never {
  process.kill(process.pid, 'SIGKILL')
  // Not reached: the kernel delivers it before the call returns.
  return process.exit(1)
}
