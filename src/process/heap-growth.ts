/**
 * How far the heap of a server may grow before V8 collects all of it.
 *
 * Each message of a stream is a buffer outside of V8's heap that is garbage as soon as it is sent, but V8 counts it as
 * growth of the heap. By default V8 collects a heap of 22 MB anew for every 9 MB that have been sent: half of all
 * processor time of a long answer. If the heap may grow by one and a half times its size, this hardly ever happens;
 * messages are freed with the young generation.
 */
import { setFlagsFromString } from 'node:v8'

/**
 * In percent of the size after the last collection. 100 is not always enough; more than 150 is no faster, and takes
 * more memory.
 */
const GROWTH_PERCENT = 150

/** For the process and all threads that it starts. Call it before the first stream. */
export function letHeapGrow(): void {
  // A V8 without this flag says so on stderr, and works as by default.
  setFlagsFromString(`--heap-growing-percent=${GROWTH_PERCENT}`)
}
