import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { execFileSync } from 'node:child_process'
import { readFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import fc from 'fast-check'
import { ClaimedDevice, describeContent } from '../../src/devicemapper/block-device.ts'
import { DeltamapperError, type ErrorCode } from '../../src/errors.ts'
import { unpackRecordedPool } from '../fixtures/recorded-pool.ts'

const folder = mkdtempSync(join(tmpdir(), 'block-device-'))
test.after.always(() => rmSync(folder, { recursive: true }))

const LOOK_BYTES = 131072

test('zeros at the start are blank, whatever comes later', (t) => {
  t.is(describeContent(Buffer.alloc(LOOK_BYTES)), undefined)
  t.is(describeContent(Buffer.alloc(512)), undefined)
  t.is(describeContent(Buffer.alloc(0)), undefined)
  t.is(describeContent(Buffer.concat([Buffer.alloc(4096), Buffer.alloc(LOOK_BYTES - 4096, 'data')])), undefined)
})

test('any other byte in the first 4 KiB is something', (t) => {
  fc.assert(
    fc.property(fc.integer({ min: 0, max: 4095 }), fc.integer({ min: 1, max: 255 }), (at, byte) => {
      const start = Buffer.alloc(LOOK_BYTES)
      start[at] = byte
      t.not(describeContent(start), undefined)
    })
  )
})

test("a kernel's thin pool is called by its name", async (t) => {
  const metadata = await readFile(join(await unpackRecordedPool(), 'metadata.img'))
  t.is(describeContent(metadata.subarray(0, LOOK_BYTES)), "a thin pool's metadata")
})

/** Where the formats keep their signatures, from their own documents. */
const documented: [string, number, Buffer, RegExp][] = [
  ['LVM (label in sector 1)', 512, Buffer.from('LABELONE'), /LVM/],
  ['GPT (LBA 1)', 512, Buffer.from('EFI PART'), /partition table/],
  ['XFS', 0, Buffer.from('XFSB'), /XFS/],
  ['LUKS', 0, Buffer.from('LUKS\xba\xbe', 'latin1'), /LUKS/],
  ['ext4', 1024 + 56, Buffer.from('53ef', 'hex'), /ext4/],
  ['swap', 4086, Buffer.from('SWAPSPACE2'), /swap/],
  ['a boot sector', 510, Buffer.from('55aa', 'hex'), /boot sector/],
  ['md 1.2', 4096, Buffer.from([0xfc, 0x4e, 0x2b, 0xa9]), /RAID/],
  ['bcache', 4096 + 24, Buffer.from('c68573f64e1a45ca8265f57f48ba6d81', 'hex'), /bcache/],
  ['bcachefs', 4096 + 24, Buffer.from('c68573f666ce90a9d96a60cf803df7ef', 'hex'), /bcachefs/],
  ['ZFS (name-value list of the first label)', 16384, Buffer.from('010100000000000000000001', 'hex'), /ZFS/],
  ['btrfs (64 KiB + 64)', 65536 + 64, Buffer.from('_BHRfS_M'), /btrfs/]
]
for (const [name, at, magic, words] of documented) {
  test(`nothing but its signature: ${name}`, (t) => {
    const start = Buffer.alloc(LOOK_BYTES)
    magic.copy(start, at)
    t.regex(describeContent(start) ?? '', words)
  })
}

const notDevices: [string, string, ErrorCode][] = [
  ['a file', join(folder, 'file'), 'DM_ARGUMENT_INVALID'],
  ['a folder', folder, 'DM_ARGUMENT_INVALID'],
  ['a character device', '/dev/null', 'DM_ARGUMENT_INVALID'],
  ['nothing', join(folder, 'nothing'), 'DM_NO_SUCH_DEVICE'],
  ['something below a file', join(folder, 'file/x'), 'DM_NO_SUCH_DEVICE'],
  ['a relative path', 'dev/sda', 'DM_ARGUMENT_INVALID'],
  ['no path', '', 'DM_ARGUMENT_INVALID'],
  ['a path with a NUL', '/dev/sd\0a', 'DM_ARGUMENT_INVALID']
]
for (const [what, path, code] of notDevices) {
  test(`no block device: ${what}`, async (t) => {
    writeFileSync(join(folder, 'file'), 'x')
    const error = await t.throwsAsync(ClaimedDevice.open(path), { instanceOf: DeltamapperError })
    t.is(error.code, code, error.line)
  })
}

test('a FIFO is refused, and nobody waits for its writer', async (t) => {
  const path = join(folder, 'fifo')
  execFileSync('mkfifo', [path])
  const error = await t.throwsAsync(ClaimedDevice.open(path), { instanceOf: DeltamapperError })
  t.is(error.code, 'DM_ARGUMENT_INVALID')
})
