/**
 * The Vagrant lab, as far as it can be looked at without VMs: Ruby reads the Vagrantfile, what it defines is what was asked for, and what it and the
 * scripts refer to is there. (Its storage is tried in test/kernel/lab-storage.test.ts.)
 */
import { cp, mkdtemp, readFile, rm, stat } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import { parse, parseAllDocuments } from 'yaml'
import { ruby } from '../lab/deploy-tools.ts'
import { objectsOf } from './objects.ts'
import { project, runTool, toolTest } from './tools.ts'

const lab = join(project, 'deploy/lab')

/** Stands in for Vagrant: writes down what it is told, and prints that as JSON. (In `deploy-tools` there is a Ruby, and no Vagrant.) */
const recorder = `
require 'json'
class Recorder < BasicObject
  def initialize(said) = (@said = said)
  def respond_to_missing?(*) = true
  def method_missing(name, *args, **options, &block)
    entry = { 'name' => name.to_s, 'args' => args, 'options' => options, 'inside' => [] }
    @said << entry
    if block
      inner = ::Recorder.new(entry['inside'])
      block.call(*([inner] * block.arity.abs))
    end
    ::Recorder.new(entry['inside'])
  end
end
module Vagrant
  def self.configure(_version)
    said = []
    yield ::Recorder.new(said)
    puts JSON.generate(said)
  end
end
load ARGV[0]
`

interface Said {
  name: string
  args: unknown[]
  options: Record<string, unknown>
  inside: Said[]
}

const folder = await mkdtemp(join(tmpdir(), 'vagrant-'))
test.after.always(() => rm(folder, { recursive: true }))

/** What the Vagrantfile tells Vagrant. In a copy, and one at a time: it keeps the cluster's token beside it. */
function configuration(variables: Record<string, string> = {}): Promise<Said[]> {
  const { path, env } = ruby()
  const program = { path, env: { ...env, ...variables } }
  const asked = last.then(async () => {
    const { status, stdout, stderr } = await runTool(program, ['-e', recorder, join(folder, 'Vagrantfile')])
    if (status !== 0) throw new Error(stderr)
    return JSON.parse(stdout) as Said[]
  })
  last = asked.catch(() => undefined)
  return asked
}
let last: Promise<unknown> = cp(join(project, 'Vagrantfile'), join(folder, 'Vagrantfile'))

/** Everything that was said under a name, however deep: `node.vm.provision` is `provision` inside of `vm`. */
function all(said: readonly Said[], name: string): Said[] {
  return said.flatMap((each) => [...(each.name === name ? [each] : []), ...all(each.inside, name)])
}

toolTest('Ruby has nothing to say of the Vagrantfile', async (t) => {
  const { status, stdout, stderr } = await runTool(ruby(), ['-wc', 'Vagrantfile'])
  t.is(status, 0, stderr)
  t.is(stderr, '')
  t.is(stdout, 'Syntax OK\n')
})

toolTest('it defines three machines, or as many as are asked for', async (t) => {
  const machines = async (variables?: Record<string, string>) =>
    all(await configuration(variables), 'define').map(({ args }) => args[0])
  t.deepEqual(await machines(), ['node-1', 'node-2', 'node-3'])
  t.deepEqual(await machines({ LAB_NODES: '1' }), ['node-1'])
  await t.throwsAsync(() => machines({ LAB_NODES: '10' }), { message: /LAB_NODES has to be 1 to 9/ })
  await t.throwsAsync(() => machines({ LAB_NODES: 'many' }), { message: /invalid value/ })
})

toolTest('each has an address and a disk of its own, with either provider', async (t) => {
  const machines = all(await configuration({ LAB_DISK: '7', LAB_NETWORK: '192.168.57' }), 'define')
  const addresses = machines.map(({ inside }) => all(inside, 'network')[0]?.options['ip'])
  t.deepEqual(addresses, ['192.168.57.11', '192.168.57.12', '192.168.57.13'])
  for (const { inside } of machines) {
    const [virtualbox, libvirt] = all(inside, 'provider')
    t.deepEqual(
      all(virtualbox?.inside ?? [], 'disk').map(({ options }) => options['size']),
      ['7GB']
    )
    t.deepEqual(
      all(libvirt?.inside ?? [], 'storage').map(({ options }) => options['size']),
      ['7G']
    )
  }
})

toolTest('the first serves the cluster, the others join it, and scripts are where they are looked for', async (t) => {
  const machines = all(await configuration(), 'define')
  const k3s = machines.map(
    ({ inside }) => all(inside, 'provision').find(({ args }) => args[0] === 'k3s')?.options['args']
  )
  const [[, server, token] = [], ...others] = k3s as string[][]
  t.regex(token ?? '', /^[0-9a-f]{32}$/)
  for (const each of others) t.deepEqual([each[0], ...each.slice(2)], ['agent', token ?? '', server ?? ''])
  t.is(others.length, 2)
  t.is((await stat(join(folder, '.vagrant/lab-token'))).mode & 0o077, 0)
  for (const [index, { inside }] of machines.entries()) {
    const provisions = all(inside, 'provision')
    t.deepEqual(
      provisions.map(({ args }) => args[0]),
      ['packages', 'storage', 'k3s', 'image', ...(index === 0 ? ['cluster'] : [])]
    )
    for (const { options } of provisions) {
      const script = (options['path'] ?? String(options['inline']).split(' ')[0]?.replace('/vagrant/', '')) as string
      t.true((await stat(join(project, script))).isFile(), script)
    }
    t.is(provisions.find(({ args }) => args[0] === 'storage')?.options['run'], 'always')
  }
})

toolTest('a second run keeps the token', async (t) => {
  const tokens = await Promise.all([configuration(), configuration()])
  t.deepEqual(tokens[0], tokens[1])
})

test("what the cluster's scripts apply is there, and fits together", async (t) => {
  const scripts = (
    await Promise.all(['cluster.sh', 'ready.sh', 'image.sh'].map((each) => readFile(join(lab, each), 'utf8')))
  ).join('\n')
  const named = [...scripts.matchAll(/\$here\/([\w./-]+)/g)].map(([, path = '']) => path)
  t.true(named.length >= 5)
  for (const path of named) await t.notThrowsAsync(() => stat(join(lab, path)), path)

  const storage = await readFile(join(lab, 'storage.sh'), 'utf8')
  const [, group, pool] = /group=\$\{LAB_GROUP:-(\w+)\} pool=\$\{LAB_POOL:-(\w+)\}/.exec(storage) ?? []
  const documents = parseAllDocuments(await readFile(join(lab, 'topolvm.yaml'), 'utf8')).map(
    (each) =>
      each.toJS() as { kind: string; metadata: { name: string }; driver?: string; spec?: { valuesContent: string } }
  )
  const { lvmd, storageClasses } = parse(
    documents.find(({ kind }) => kind === 'HelmChart')?.spec?.valuesContent ?? ''
  ) as {
    lvmd: { deviceClasses: { 'volume-group': string; 'thin-pool': { name: string } }[] }
    storageClasses: { name: string }[]
  }
  t.deepEqual(
    lvmd.deviceClasses.map((each) => [each['volume-group'], each['thin-pool'].name]),
    [[group, pool]]
  )
  t.is(documents.find(({ kind }) => kind === 'VolumeSnapshotClass')?.driver, 'topolvm.io')

  const demo = objectsOf(await readFile(join(lab, 'demo.yaml'), 'utf8'))
  const claims = demo.filter(({ kind }) => kind === 'PersistentVolumeClaim')
  t.true(claims.length > 0)
  for (const { spec } of claims) {
    t.is((spec as unknown as { storageClassName: string }).storageClassName, storageClasses[0]?.name)
  }
})
