/**
 * The Debian package, installed by apt on minimal roots of Debian 12 and 13, from the one file and without a network.
 */
import { createHash } from 'node:crypto'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import { migrations } from '../../src/agent/catalog/store/migrations.ts'
import { filesOf, loadedBy, quickDeb, variantOf } from './debian-package.ts'
import { type DebianRelease, debianReleases, DebianRoot, ensureDebianRoot } from './debian-root.ts'
import { LabUnavailable, projectFolder } from './packages.ts'

const unavailable = await Promise.all(debianReleases.map(ensureDebianRoot)).then(
  () => undefined,
  (error: unknown) => {
    if (error instanceof LabUnavailable) return error.message
    throw error
  }
)
const rootTest = unavailable === undefined ? test.serial : test.skip
const folder = await mkdtemp(join(tmpdir(), 'deltamapper-installation-'))
const readme = await readFile(join(projectFolder, 'README.md'), 'utf8')
let deb: string

test.before(async (t) => {
  t.timeout(10 * 60_000)
  if (unavailable === undefined) deb = await quickDeb(folder)
})
test.after.always(() => rm(folder, { recursive: true }))

/** README's first screen: what it says to type after the installation, and what is printed then. */
function firstCommand(): { command: string; printed: string } {
  const [, command, printed] = /^```sh\n(zcat [^`]*?)```\n\n```\n([^`]*?)```$/m.exec(readme) ?? []
  if (command === undefined || printed === undefined) throw new Error('README.md has another first command')
  return { command, printed }
}

/** Every path of a root but those that dpkg and apt keep their own books in, one a line. */
const everything = `find / -xdev -not -path '/proc*' -not -path '/tmp*' -not -path '/root/*' \
  -not -path '/var/log/*' -not -path '/var/lib/dpkg/*' -not -path '/var/cache/*' -not -path '/var/lib/apt/*' \
  -not -name '*-' -not -path '/etc/.pwd.lock' -not -path '/var/lib/systemd*' | sort`

const install = (file: string) => `apt-get install --yes --allow-downgrades ${file} 2>&1`

for (const release of debianReleases) {
  rootTest(
    `Debian ${release}: one file, no network; then README's first command prints what README says`,
    async (t) => {
      t.timeout(10 * 60_000)
      await using root = await DebianRoot.create(release)
      const file = await root.put(deb)
      const before = (await root.run(everything)).stdout
      const installed = await root.run(install(file))
      t.is(installed.status, 0, installed.stdout)
      t.log(installed.stdout.split('\n').slice(-4).join(' / '))

      const { command, printed } = firstCommand()
      const said = await root.run(command)
      t.is(said.stdout, printed, said.stderr)
      await itsAgentAnswers(root, t)

      const purged = await root.run('apt-get purge --yes deltamapper 2>&1')
      t.is(purged.status, 0, purged.stdout)
      t.is((await root.run(everything)).stdout, before, 'nothing is left')
      t.is((await root.run('getent passwd deltamapper || true')).stdout, '')
    }
  )
}

/** An agent of the installed package, threads included, says what the command says without one. */
async function itsAgentAnswers(root: DebianRoot, t: { is: (one: unknown, other: unknown, why?: string) => unknown }) {
  const { status, stdout, stderr } = await root.run(`
    pool=/usr/share/deltamapper/recorded-pool; mkdir /tmp/demo
    cp $pool/pool.json /tmp/demo; zcat $pool/metadata.img.gz >/tmp/demo/metadata.img
    echo 'catalog: /tmp/catalog.sqlite' >/tmp/agent.yaml
    deltamapper agent --config /tmp/agent.yaml --listen unix:///tmp/agent.sock --recorded demo=/tmp/demo >/tmp/log 2>&1 & agent=$!
    until grep --quiet listening /tmp/log; do kill -0 $agent || { cat /tmp/log; exit 1; }; sleep 0.2; done
    deltamapper delta demo/tuesday demo/thursday --endpoint unix:///tmp/agent.sock -o ndjson >/tmp/asked
    deltamapper delta 2 4 --metadata /tmp/demo/metadata.img --size 50360320 -o ndjson >/tmp/read 2>/dev/null
    kill $agent; wait $agent
    diff /tmp/asked /tmp/read && wc -l </tmp/asked`)
  t.is(status, 0, stdout + stderr)
  t.is(Number(stdout) > 5, true, stdout)
}

rootTest(
  'it is upgraded and downgraded, unless a newer version has written the catalog: that is refused, and said',
  async (t) => {
    t.timeout(10 * 60_000)
    const release: DebianRelease = 'bookworm'
    await using root = await DebianRoot.create(release)
    const older = await variantOf(deb, { version: '0.0.9' }, folder)
    const oldest = await variantOf(deb, { version: '0.0.1', schema: migrations.length - 1 }, folder)
    const version = `dpkg-query --show --showformat '\${Version}\n' deltamapper`
    for (const each of [older, deb, older]) {
      const { status, stdout } = await root.run(install(await root.put(each)))
      t.is(status, 0, stdout)
    }
    // A catalog of its own: an agent makes one as it starts.
    await root.run(`
    deltamapper agent --listen unix:///tmp/agent.sock >/tmp/log 2>&1 & agent=$!
    until grep --quiet listening /tmp/log; do kill -0 $agent || { cat /tmp/log; exit 1; }; sleep 0.2; done
    kill $agent; wait $agent`)
    const before = (await root.run(version)).stdout
    const refused = await root.run(install(await root.put(oldest)))
    t.not(refused.status, 0)
    t.regex(
      refused.stdout,
      new RegExp(`was written by a newer version \\(schema ${migrations.length}, this version knows up to`)
    )
    t.is((await root.run(version)).stdout, before, 'the newer one stays')
    t.is((await root.run(install(await root.put(older)))).status, 0, 'one that knows this catalog is taken')

    const purged = await root.run('apt-get purge --yes deltamapper 2>&1')
    t.is(purged.status, 0, purged.stdout)
  }
)

rootTest('a purge keeps a copy of a catalog that knows pools, and says where', async (t) => {
  t.timeout(10 * 60_000)
  await using root = await DebianRoot.create('trixie')
  t.is((await root.run(install(await root.put(deb)))).status, 0)
  const said = await root.run(`
    deltamapper agent --listen unix:///tmp/agent.sock >/tmp/log 2>&1 & agent=$!
    until grep --quiet listening /tmp/log; do kill -0 $agent || { cat /tmp/log; exit 1; }; sleep 0.2; done
    kill $agent; wait $agent
    /usr/lib/deltamapper/node --no-warnings -e "
      const { DatabaseSync } = require('node:sqlite')
      const catalog = new DatabaseSync('/var/lib/deltamapper/catalog.sqlite')
      const columns = catalog.prepare('PRAGMA table_info(pools)').all()
      const values = columns.map(({ type }) => type === 'INTEGER' ? 1 : \\"'tank'\\")
      catalog.exec('INSERT INTO pools VALUES (' + values + ')')"
    apt-get purge --yes deltamapper 2>&1`)
  t.is(said.status, 0, said.stdout + said.stderr)
  t.regex(said.stdout, /its catalog has 1 pools and 0 tracked volumes/)
  t.regex(said.stdout, /\/var\/backups\/deltamapper-catalog\.sqlite/)
  t.is(
    (await root.run('ls /var/backups/deltamapper-catalog.sqlite; ls /var/lib/deltamapper || true')).stdout.trim(),
    '/var/backups/deltamapper-catalog.sqlite'
  )
})

rootTest('made twice, it is the same, byte for byte; and it has what its docs speak of', async (t) => {
  t.timeout(10 * 60_000)
  const digest = async (path: string) =>
    createHash('sha256')
      .update(await readFile(path))
      .digest('hex')
  t.is(await digest(await quickDeb(join(folder, 'again'))), await digest(deb))
  const files = await filesOf(deb, folder)
  for (const each of [
    '/etc/deltamapper/agent.yaml',
    '/usr/bin/deltamapper',
    '/usr/lib/systemd/system/deltamapper-agent.service',
    '/usr/lib/systemd/system/deltamapper-era.service',
    '/usr/lib/systemd/system/deltamapper-router.service',
    '/usr/lib/sysusers.d/deltamapper.conf',
    '/usr/lib/tmpfiles.d/deltamapper.conf',
    '/usr/lib/udev/rules.d/90-deltamapper-era.rules',
    '/usr/share/bash-completion/completions/deltamapper',
    '/usr/share/doc/deltamapper/copyright',
    '/usr/share/doc/deltamapper/docs/errors.md',
    '/usr/share/doc/deltamapper/sbom.cdx.json',
    '/usr/share/man/man1/deltamapper-delta.1.gz'
  ]) {
    t.true(files.includes(each), each)
  }
  t.deepEqual(
    files.filter((each) => /\.(ts|map|d\.ts)$/.test(each)),
    []
  )
  const loads = async (command: string) =>
    [...(await loadedBy(command, join(folder, 'files/usr/lib/deltamapper/dist'))).values()].join('\n')
  const ofKubernetes = 'kubernetes.io/serviceaccount'
  t.false((await loads('agent')).includes(ofKubernetes), 'an agent loads nothing that speaks to Kubernetes')
  t.true((await loads('kube')).includes(ofKubernetes))
})
