/**
 * Nothing that we start comes from the current directory, whatever PATH says or does not say.
 */
import { execFile } from 'node:child_process'
import { existsSync } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import test from 'ava'
import { childEnvironment, faultOfCommand, searchPath } from '../src/search-path.ts'
import { testFolder } from './support/test-folder.ts'

const folder = testFolder(test)
const system = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'

test('only absolute folders are left of a PATH, and those of the system are always there', (t) => {
  for (const path of [undefined, '', ':', '.', 'bin', '::', '.:..:bin/x']) t.is(searchPath(path), system, path)
  t.is(
    searchPath(':/opt/tools::/usr/bin:.:/bin:'),
    '/opt/tools:/usr/bin:/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/sbin'
  )
})

test('no library comes from there either', (t) => {
  const before = process.env['LD_LIBRARY_PATH']
  t.teardown(() => {
    if (before === undefined) delete process.env['LD_LIBRARY_PATH']
    else process.env['LD_LIBRARY_PATH'] = before
  })
  process.env['LD_LIBRARY_PATH'] = ':/opt/lib:.'
  t.is(childEnvironment()['LD_LIBRARY_PATH'], '/opt/lib')
  process.env['LD_LIBRARY_PATH'] = '.'
  t.false('LD_LIBRARY_PATH' in childEnvironment())
  t.is(childEnvironment({ LC_ALL: 'C' })['LC_ALL'], 'C')
})

test('a configured command names its program by an absolute path, or only by its name', (t) => {
  for (const words of [
    [],
    ['lvm'],
    ['/sbin/lvm'],
    ['env', 'PATH=/opt/tools:/bin', 'x/y'],
    ['chroot', '/host', './x']
  ]) {
    t.is(faultOfCommand(words), undefined, words.join(' '))
  }
  t.regex(faultOfCommand(['./lvm']) ?? '', /"\.\/lvm" depends on the current directory: give its absolute path/)
  t.regex(faultOfCommand(['bin/lvm']) ?? '', /depends on the current directory/)
  for (const path of ['PATH=', 'PATH=:/bin', 'PATH=/bin:', 'PATH=/bin::/sbin', 'PATH=.', 'LD_LIBRARY_PATH=lib']) {
    t.regex(faultOfCommand(['env', path]) ?? '', /names the current directory: give absolute folders only/, path)
  }
})

const kubeconfig = {
  clusters: [{ name: 'a', cluster: { server: 'https://127.0.0.1:1' } }],
  users: [{ name: 'a', user: { exec: { apiVersion: 'client.authentication.k8s.io/v1', command: 'kube-login' } } }],
  contexts: [{ name: 'a', context: { cluster: 'a', user: 'a' } }],
  'current-context': 'a'
}

// (chdir is a process's: so another one.)
const starters: Readonly<Record<string, { program: string; script: string }>> = {
  'the tools engine': {
    program: 'thin_delta',
    script: `import { checkTool } from '${new URL('../src/devicemapper/tools/tool.ts', import.meta.url).href}'
      await checkTool('thin_delta', []).catch(() => undefined)`
  },
  LVM: {
    program: 'lvm',
    script: `import { LvmReporter } from '${new URL('../src/agent/lvm/report.ts', import.meta.url).href}'
      await new LvmReporter().volumeGroups().catch(() => undefined)`
  },
  'a kubeconfig': {
    program: 'kube-login',
    script: `import { KubernetesApi } from '${new URL('../src/kubernetes/api.ts', import.meta.url).href}'
      await new KubernetesApi({ kubeconfig: import.meta.dirname + '/kubeconfig' }).get('/x').catch(() => undefined)`
  },
  'the command line': {
    program: 'id',
    script: `import { main } from '${new URL('../src/cli/main.ts', import.meta.url).href}'
      import { spawnSync } from 'node:child_process'
      await main(['--version'])
      spawnSync('id')`
  }
}
for (const [name, { program, script }] of Object.entries(starters)) {
  test(`${name} starts nothing from the current directory`, async (t) => {
    const here = join(folder, program)
    await writeFile(`${here}.mjs`, script)
    await writeFile(join(folder, 'kubeconfig'), JSON.stringify(kubeconfig))
    await writeFile(here, `#!/bin/sh\n: >${here}.started\n`, { mode: 0o755 })
    const paths = [undefined, '', ':', '.', ':/usr/bin', '/nonexistent:']
    // Kubernetes' library takes seconds to load.
    for (const path of name === 'a kubeconfig' ? paths.slice(3, 5) : paths) {
      const env = path === undefined ? {} : { PATH: path }
      await promisify(execFile)(process.execPath, [`${here}.mjs`], { cwd: folder, env })
      t.false(existsSync(`${here}.started`), JSON.stringify(env))
    }
  })
}
