import { Chain } from '../src/backup/chain.ts'
import { digestOf } from '../src/backup/digest.ts'
import { openPoolMetadata } from '../src/devicemapper/thin/pool-metadata.ts'
import { execFileSync } from 'node:child_process'
import { mkdirSync } from 'node:fs'
const [,, root, folder] = process.argv
mkdirSync(root,{recursive:true})
const metadata = await openPoolMetadata(folder+'/metadata.img', { liveRoot: false })
const fingerprint = await metadata.fingerprintText(1)
await metadata.close()
const sizeBytes = 340*2**30
const chain = await Chain.open(root, 'x/volume', 'exclusive')
const file = '20260101T000000Z.qcow2'
const part = chain.path(chain.partOf(file))
execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', part, String(sizeBytes)])
const { sha256, bytes } = await digestOf(part)
await chain.add({ point: '20260101T000000Z', created: '2026-01-01T00:00:00.000Z', kind: 'full', size_bytes: sizeBytes, file, stored_bytes: bytes, sha256, snapshot: { handle: 'x/s1', fingerprint }, tools: { deltamapper: 'bench', qemu_img: 'bench' } })
await chain.close()
