/**
 * Starts a script that measures with fio in a kernel of the lab's, and takes the figures that it prints.
 */
import { join } from 'node:path'
import { LabFailure, projectFolder, startLab } from '../test/lab/boot.ts'
import { ensureFio } from '../test/lab/fio.ts'

/** Some figures take half an hour on a busy machine; one that takes longer has failed. */
const PATIENCE_S = 2 * 3600

/**
 * @param script below `bench/`; it gets `--fio FILE --libraries FOLDERS --rounds N --seconds S`, and prints JSON
 * @param rounds turns of each kind
 * @param seconds a turn takes
 * @param diskBytes size of the lab's disk; `memoryMiB`: of its memory, 1024 by default
 */
export async function measureInLab<Figures>(
  script: string,
  rounds: number,
  seconds: number,
  diskBytes: number,
  memoryMiB?: number
): Promise<Figures> {
  const { path, libraries } = await ensureFio()
  const numbers = ['--rounds', String(rounds), '--seconds', String(seconds)]
  let output = ''
  let complaint = ''
  const lab = await startLab({
    command: [
      ...[process.execPath, join(projectFolder, 'bench', script)],
      ...['--fio', path, '--libraries', libraries, ...numbers]
    ],
    diskBytes,
    ...(memoryMiB !== undefined && { memoryMiB }),
    timeoutSeconds: PATIENCE_S,
    onOutput: (stream, chunk) => {
      if (stream === 'stdout') output += chunk.toString()
      else complaint += chunk.toString()
    }
  })
  const { status } = await lab.result
  if (status !== 0) throw new LabFailure(`${script} ended with status ${status}: ${complaint}`)
  return JSON.parse(output) as Figures
}
