/** Seeded pseudo-random numbers: those of the sources, for tests. */
export { Random } from '../../src/random.ts'
