/**
 * What a life is about. Most that happens in a life hides something else that could have: so half of the lives have a bit of everything, and
 * each of the others does much of a few things (swarm testing: Groce and others, 2012). Which, the seed says.
 */
export const themes = ['twins', 'reuse', 'bases', 'sizes', 'back', 'volumes', 'trees', 'catalog', 'disks'] as const

export type Theme = (typeof themes)[number]

/** Every second life is about nothing in particular. */
export function themeOf(seed: number): Theme | undefined {
  return seed % 2 === 0 ? undefined : themes[((seed - 1) / 2) % themes.length]
}

/** The first seeds from one on whose lives are about something; whatever they are about where it is left out. */
export function seedsOf(theme: Theme | undefined, from: number, count: number): number[] {
  const seeds: number[] = []
  for (let seed = from; seeds.length < count; seed++)
    if (theme === undefined || themeOf(seed) === theme) seeds.push(seed)
  return seeds
}

export function isTheme(word: string): word is Theme {
  return themes.some((theme) => theme === word)
}
