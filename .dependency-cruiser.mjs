/**
 * Who may import whom: no circle of files, none of folders, and each room knows what docs/architecture.md says it knows.
 * Types count as well. `depcruise src native` is part of `npm run check`.
 */

import { readdirSync } from 'node:fs'

/** Folders with files of their own beside rooms. Where the files use the rooms, no room uses them. */
const above = ['agent', 'agent/catalog', 'agent/era', 'cli', 'devicemapper/thin', 'grpc', 'mock', 'router']
/** Where the rooms use the files, no file uses a room. */
const below = ['conformance', 'devicemapper']

const rooms = [
  'agent',
  'backup',
  'cli',
  'conformance',
  'devicemapper',
  'grpc',
  'kubernetes',
  'mock',
  'monitoring',
  'nbd',
  'process',
  'router'
]

/** What each room may import from, beside itself, the files of src/ and native/. */
const knows = {
  agent: ['devicemapper', 'grpc', 'monitoring', 'process'],
  // (Of the agent: how LVM is asked.)
  backup: ['agent', 'grpc', 'nbd'],
  cli: rooms,
  conformance: ['grpc'],
  devicemapper: [],
  grpc: ['devicemapper'],
  kubernetes: ['devicemapper', 'grpc'],
  mock: ['grpc'],
  monitoring: ['grpc'],
  nbd: ['devicemapper'],
  process: ['grpc'],
  router: ['grpc', 'kubernetes', 'monitoring', 'process']
}

const files = readdirSync('src', { recursive: true }).filter((each) => each.endsWith('.ts'))
const folders = new Set(files.map((each) => each.slice(0, Math.max(0, each.lastIndexOf('/')))))
for (const folder of folders) {
  if (folder === '' || above.includes(folder) || below.includes(folder)) continue
  if ([...folders].some((each) => each.startsWith(`${folder}/`))) {
    throw new Error(`src/${folder} has files and rooms: say in .dependency-cruiser.mjs which is above the other`)
  }
}

export default {
  forbidden: [
    {
      name: 'circle-of-files',
      comment: 'Move what both need into a file below them.',
      severity: 'error',
      from: {},
      to: { circular: true }
    },
    {
      name: 'circle-of-folders',
      comment: 'Move the file that goes against the others, or the part of it that does.',
      severity: 'error',
      scope: 'folder',
      from: { path: '^src/' },
      to: { circular: true }
    },
    ...above.map((folder) => ({
      name: `src/${folder}/*.ts is above its rooms`,
      severity: 'error',
      from: { path: `^src/${folder}/[^/]+/` },
      to: { path: `^src/${folder}/[^/]+\\.ts$` }
    })),
    ...below.map((folder) => ({
      name: `src/${folder}/*.ts is below its rooms`,
      severity: 'error',
      from: { path: `^src/${folder}/[^/]+\\.ts$` },
      to: { path: `^src/${folder}/[^/]+/` }
    })),
    {
      name: 'src/*.ts is below all rooms',
      comment:
        'testing.ts, thin.ts and era.ts are what the package exports under these names: nobody in here imports them.',
      severity: 'error',
      from: { path: '^src/[^/]+\\.ts$', pathNot: '^src/(testing|thin|era)\\.ts$' },
      to: { path: '^(src/[^/]+/|native/|src/(testing|thin|era)\\.ts)' }
    },
    ...Object.entries(knows).map(([room, known]) => ({
      name: `what src/${room} may know`,
      severity: 'error',
      from: { path: `^src/${room}/` },
      to: { path: '^src/[^/]+/', pathNot: `^src/(${[room, ...known].join('|')})/` }
    })),
    {
      name: 'what native may know',
      severity: 'error',
      from: { path: '^native/' },
      to: { path: '^src/[^/]+/' }
    }
  ],
  options: {
    tsPreCompilationDeps: true,
    tsConfig: { fileName: 'tsconfig.json' },
    doNotFollow: { path: 'node_modules' }
  }
}
