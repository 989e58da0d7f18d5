/**
 * Tools to run as the agent and the command line do: Debian 12's and Debian 13's, unpacked in the lab's cache, and scripts in their place
 * that do what no version does, or only a broken one.
 */
import { mkdir, mkdtemp, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import type { ToolCommand, ToolName } from '../../src/devicemapper/tools/tool.ts'
import { ensureLab, LabUnavailable } from '../lab/packages.ts'
import { thinTool } from '../lab/tools.ts'
import { ensureTrixieTools, trixieTool } from '../lab/trixie-tools.ts'

export const toolVersions = ['0.9.0', '1.1.0'] as const
export type TestedVersion = (typeof toolVersions)[number]

/** Both versions, or why they cannot be had here. */
export async function toolCommands(): Promise<Record<TestedVersion, ToolCommand> | string> {
  try {
    await Promise.all([ensureLab(), ensureTrixieTools()])
  } catch (error) {
    if (error instanceof LabUnavailable) return error.message
    throw error
  }
  const { path, env } = thinTool('thin_delta')
  return {
    '0.9.0': ['env', `LD_LIBRARY_PATH=${env.LD_LIBRARY_PATH ?? ''}`, `PATH=${searching(dirname(path))}`],
    '1.1.0': ['env', `PATH=${searching(dirname(trixieTool('thin_delta').path))}`]
  }
}

/**
 * Tools that are shell scripts. In one, `real "$@"` runs the tool that it stands for, where `real` says how; `asked_version "$@"` is true
 * where only its version is wanted.
 */
export async function scriptedTools(
  folder: string,
  scripts: Partial<Record<ToolName, string>>,
  real: ToolCommand = []
): Promise<ToolCommand> {
  await mkdir(folder, { recursive: true })
  const bin = await mkdtemp(join(folder, 'tools-'))
  for (const [name, script] of Object.entries(scripts)) {
    const words = [...real, name].map((word) => `'${word}'`).join(' ')
    const text = `#!/bin/sh
real() { ${words} "$@"; }
asked_version() { [ "$*" = --version ]; }
${script}
`
    await writeFile(join(bin, name), text, { mode: 0o755 })
  }
  return ['env', `PATH=${searching(bin)}`]
}

function searching(folder: string): string {
  return `${folder}:/usr/bin:/bin`
}
