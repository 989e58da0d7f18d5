// The tests that run on any machine. Those under test/kernel/ need a real device-mapper: the lab runs them (ava.lab.config.js).
export default {
  files: ['test/**/*.test.ts', '!test/kernel/**', '!test/lab/**/cache/**'],
  extensions: { ts: 'module' },
  workerThreads: false,
  // Two processors, and a third file for when one of two waits.
  concurrency: 3,
  // Nothing is to be concluded from how long a busy machine takes; whoever hangs for so long hangs for good.
  timeout: '10m'
}
