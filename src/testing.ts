/**
 * For tests in Node (`import { startMock, runConformance } from 'deltamapper/testing'`): a mock CSI driver for authors
 * of backup programs, and a conformance run for authors of drivers. docs/conformance.md has an example of each.
 */
export { type Mock, type MockOptions, type MockSnapshot, startMock } from './mock/mock.ts'
export { compareImage, type Comparison } from './mock/driver/images.ts'
export { listScenarios, type Scenario } from './mock/driver/scenario.ts'
export {
  conforms,
  type ConformanceOptions,
  type Judgement,
  judgeRun,
  type Report,
  runConformance,
  withBaseline
} from './conformance/conformance.ts'
export { readRun, type Run, writeRun } from './conformance/run.ts'
export { DeltamapperError, type ErrorCode } from './errors.ts'
