/**
 * Several lives in step: each changes what is its own, and asks; all that is asked goes out at once, when every life has
 * come to a question or to its end. So nothing is changed while something is asked, and the agent asks LVM once for all:
 * most of what a question costs in the kernel lab.
 */

interface Asked {
  readonly ask: () => Promise<void>
  readonly resolve: () => void
}

/** Asks, together with everybody else. Rejects as the question does. */
export type InStep = <T>(question: () => Promise<T>) => Promise<T>

/** Lives all of them to the end. @throws what the first of them throws, once no question is under way any more */
export async function liveInStep(lives: readonly ((inStep: InStep) => Promise<void>)[]): Promise<void> {
  let living = lives.length
  let round: Asked[] = []
  const askAll = async () => {
    const all = round
    round = []
    await Promise.all(all.map(({ ask }) => ask()))
    // One after the other: each goes on to its next question before the next one moves.
    for (const { resolve } of all) resolve()
  }
  const askIfAllAreThere = () => {
    if (living > 0 && round.length === living) void askAll()
  }
  const inStep: InStep = async <T>(question: () => Promise<T>): Promise<T> => {
    let answer: PromiseSettledResult<T> | undefined
    await new Promise<void>((resolve) => {
      const ask = async () => {
        ;[answer] = await Promise.allSettled([question()])
      }
      round.push({ ask, resolve })
      askIfAllAreThere()
    })
    if (answer?.status === 'fulfilled') return answer.value
    throw answer?.reason
  }
  const ends = await Promise.allSettled(
    lives.map((life) =>
      life(inStep).finally(() => {
        living--
        askIfAllAreThere()
      })
    )
  )
  const failed = ends.find((end) => end.status === 'rejected')
  if (failed) throw failed.reason
}
