// The tests that run on any machine. Those under test/kernel/ need a real device-mapper: the lab runs them (npm run test:kernel).
export default {
  files: ['test/**/*.test.ts', '!test/kernel/**', '!test/lab/**/cache/**'],
  extensions: { ts: 'module' },
  workerThreads: false,
  concurrency: 2,
  timeout: '2m'
}
