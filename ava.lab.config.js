// The tests that need a real kernel: test/lab/run.ts runs them inside the lab. One after the other, since the lab has one disk.
export default {
  files: ['test/kernel/**/*.test.ts'],
  extensions: { ts: 'module' },
  workerThreads: false,
  concurrency: 1,
  serial: true,
  timeout: '2m'
}
