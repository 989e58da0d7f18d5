import test from 'ava'
import { faultOf, parseToolVersion } from '../../../src/devicemapper/tools/tool-version.ts'

test('what --version prints, of either family', (t) => {
  for (const [text, major, minor, patch] of [
    ['0.9.0\n', 0, 9, 0],
    ['1.1.0\n', 1, 1, 0],
    ['thin_delta 1.0.12\n', 1, 0, 12],
    ['10.20.3', 10, 20, 3]
  ] as const) {
    t.deepEqual(parseToolVersion(text), { major, minor, patch }, text)
  }
  for (const text of ['', '1.1', '1.1.0-rc1\n', 'v1.1.0', '1.1.0\n1.0.0\n', 'Usage: thin_delta', '1.1.00000']) {
    t.is(parseToolVersion(text), undefined, text)
  }
})

test('versions that answer wrongly are known by what they do', (t) => {
  const verdicts: Record<string, RegExp | undefined> = {
    '0.3.2': /leaves out changed blocks/,
    '0.7.5': /leaves out changed blocks/,
    '0.7.6': undefined,
    '0.8.5': undefined,
    '0.9.0': undefined,
    '0.9.1': /has been tried/,
    '0.10.0': /has been tried/,
    '1.0.0': /reports changed blocks as the same/,
    '1.0.4': /reports changed blocks as the same/,
    '1.0.5': /--thin2/,
    '1.0.6': undefined,
    '1.0.10': undefined,
    '1.1.0': undefined,
    '1.3.3': undefined,
    '2.0.0': undefined
  }
  for (const [text, expected] of Object.entries(verdicts)) {
    const version = parseToolVersion(text)
    const fault = version && faultOf(version)
    if (expected === undefined) t.is(fault, undefined, text)
    else t.regex(fault ?? 'nothing', expected, text)
  }
})
