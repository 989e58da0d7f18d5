/** How much metadata a volume takes. Attaching is tried in test/kernel/era-devices.test.ts. */
import test from 'ava'
import { metadataBytes } from '../../../../src/agent/era/device/metadata-size.ts'

test('a TiB of 64 KiB blocks takes what the documentation says', (t) => {
  t.is(metadataBytes(2 ** 40 / 65536), 161 * 2 ** 20)
  // An array of eras, a writeset for each era that is not digested, and all of it again under a metadata snapshot.
  const blocks = 2 ** 24
  t.true(metadataBytes(blocks) >= 2 * (4 * blocks * (4096 / 4072)) + blocks / 8)
  t.is(metadataBytes(0), 2 ** 20)
})
