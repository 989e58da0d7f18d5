/**
 * The command line of `deltamapper kube`; what it answers is in test/kubernetes/snapshot-metadata.test.ts.
 */
import { join } from 'node:path'
import test from 'ava'
import { FakeApiServer } from '../../support/fake-api-server.ts'
import { testFolder } from '../../support/test-folder.ts'
import { complaint, runCommand } from '../run-command.ts'

const folder = testFolder(test)

const wrong: [what: string, args: string[], words: RegExp][] = [
  ['no question', [], /--help.*DM_ARGUMENT_MISSING/],
  ['no snapshot', ['allocated', 'shop'], /'SNAPSHOT'.*kube allocated --help.*DM_ARGUMENT_MISSING/],
  ['no base', ['delta', 'shop', 'db'], /--base NAME or --base-handle HANDLE.*DM_ARGUMENT_MISSING/],
  ['two bases', ['delta', 'shop', 'db', '--base', 'a', '--base-handle', 'b'], /--base.*--base-handle/],
  ['a base for what is allocated', ['allocated', 'shop', 'db', '--base', 'a'], /unknown option '--base'/],
  ['no try at all', ['allocated', 'shop', 'db', '--tries', '0'], /at least 1/],
  ['an empty namespace', ['allocated', '', 'db'], /namespace is empty.*DM_ARGUMENT_MISSING/],
  ['no namespace', ['allocated', '..', 'db'], /"\.\." is no name of a namespace.*DM_ARGUMENT_INVALID/],
  ['a snapshot without a name', ['allocated', 'shop', ''], /name of the VolumeSnapshot is empty.*DM_ARGUMENT_MISSING/],
  ['a path for a name', ['allocated', 'shop', '../db'], /"\.\.\/db" is no name of a VolumeSnapshot/],
  ['a base without a name', ['delta', 'shop', 'db', '--base', ''], /VolumeSnapshot is empty.*DM_ARGUMENT_MISSING/],
  ['an empty handle', ['delta', 'shop', 'db', '--base-handle', ''], /handle of the base is empty.*DM_ARGUMENT_MISSING/],
  ['no service account', ['allocated', 'shop', 'db', '--service-account', 'x'], /"x" names no service account/],
  ['no address', ['allocated', 'shop', 'db', '--address', 'junk'], /"junk" is no address.*HOST:PORT/],
  [
    'a port that is none',
    ['allocated', 'shop', 'db', '--address', 'localhost:99999'],
    /"localhost:99999" is no address/
  ],
  ['an offset that is none', ['allocated', 'shop', 'db', '--starting-offset', '-1'], /byte count/]
]
for (const [what, args, words] of wrong) {
  test(`${what} is wrong usage`, async (t) => {
    const result = await runCommand(['kube', ...args])
    t.is(result.status, 2)
    t.is(result.stdout, '')
    t.regex(complaint(result), words)
  })
}

test('where no cluster is configured, none is asked', async (t) => {
  const result = await runCommand(['kube', 'allocated', 'shop', 'db'], { env: { HOME: folder, KUBECONFIG: '' } })
  t.is(result.status, 1)
  t.regex(complaint(result), /no cluster is configured: .*name a kubeconfig file \(DM_CONFIG_INVALID\)/)
})

test('a cluster that is not there is said in one line', async (t) => {
  const kubeconfig = join(folder, 'kubeconfig')
  const ask = (...more: string[]) =>
    runCommand(['kube', 'allocated', 'shop', 'db', '--kubeconfig', kubeconfig, ...more])
  const missing = await ask()
  t.is(missing.status, 1)
  t.regex(complaint(missing), /kubeconfig cannot be used: .*DM_CONFIG_INVALID/)
  const server = await FakeApiServer.start(t)
  await server.kubeconfig(kubeconfig)
  await server.stop()
  t.regex(complaint(await ask()), /http:\/\/127\.0\.0\.1:\d+ does not answer \(.*ECONNREFUSED.*DM_CLUSTER_UNREACHABLE/)
  t.regex(complaint(await ask('--context', 'other')), /no context other.*DM_CONFIG_INVALID/)
})
