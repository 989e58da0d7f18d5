// The tests that need a real kernel: test/lab/run.ts runs them inside the lab. One after the other, since the lab has one disk.
export default {
  files: ['test/kernel/**/*.test.ts'],
  extensions: { ts: 'module' },
  require: ['./test/lab/tidy.ts'],
  workerThreads: false,
  concurrency: 1,
  serial: true,
  // Nothing is to be concluded from how long a busy machine takes; whoever hangs for so long hangs for good.
  timeout: '20m'
}
