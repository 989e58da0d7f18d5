/**
 * The engines: `native` is our own reading of the metadata, `tools` is thin_delta and thin_dump, `both` is our own,
 * checked with the tools.
 */
export const engines = ['native', 'tools', 'both'] as const
export type Engine = (typeof engines)[number]
