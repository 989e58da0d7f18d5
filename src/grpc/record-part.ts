/** How much of a base record goes into one message of ReadBase or LendBase, which both sides have to know. */

/** The most bytes of a part. */
export const PART_BYTES = 2 ** 20
