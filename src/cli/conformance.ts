import type { Command } from 'commander'
export function addConformanceCommand(program: Command): void { program.command('conformance') }
