/**
 * What answers on a block device are held against: the bounds that were set, beside what a run has measured. Rows of a
 * table: what, the bound, the figure.
 */
import type { Figures } from './device.ts'
import type { RouterFigures } from './router.ts'
import type { StreamFigures } from './stream.ts'

/** Of deltas and of what is allocated: against the C program, and against the tools. */
export function deltaRows(figures: readonly Figures[]): string[][] {
  return figures.flatMap((each) => {
    const { medium, question } = each
    const about = (what: string) => `${medium}, ${question}: ${what}`
    const isCached = each.limits.libaio === undefined
    const limit = each.limits.libaio ?? each.limits.pread
    if (question === 'identical') return [[about('less CPU than thin_delta'), '≥ 300 ×', fewer(each)]]
    if (question === '1 % clustered') return [[about('less CPU than thin_delta'), '≥ 100 ×', fewer(each)]]
    const rows = [
      [about(`CPU of C's`), isCached ? '≤ 1.5 ×' : '≤ 2.5 ×', times(each.agent.cpu / limit!.cpu)],
      ...(isCached ? [] : [[about(`time of C's`), '≤ 1.5 ×', times(each.agent.wall / limit!.wall)]])
    ]
    if (question === '1 % scattered')
      rows.push([about('less CPU than thin_delta'), isCached ? '≥ 10 ×' : '≥ 8 ×', fewer(each)])
    if (question === 'allocated') {
      const faster = each.tools.map(({ cost }) => times(cost.wall / each.agent.wall))
      rows.push([about('faster than thin_dump'), '≥ 2 ×', faster.join(', ')])
    }
    return rows
  })
}

/** Of an answer of very many extents. */
export function streamRows(straight: StreamFigures, { extents, routed, direct }: RouterFigures): string[][] {
  const rate = (count: number, milliseconds: number) => `${(count / milliseconds / 1000).toFixed(1)} M/s`
  return [
    ['extents a second, straight, over a unix socket', '≥ 25 M/s', rate(straight.extents, straight.agentMs)],
    ['extents a second, straight, over mutual TLS', '', rate(extents, direct.milliseconds)],
    ['extents a second, through the router, over mutual TLS', '≥ 18 M/s', rate(extents, routed.milliseconds)],
    [
      "the agent's CPU, beside sending the same bytes ready-made",
      '≤ 5 ×',
      times(straight.agentCpuMs / straight.readyMadeCpuMs)
    ]
  ]
}

function fewer({ agent, tools }: Figures): string {
  return tools.map(({ cost }) => times(cost.cpu / agent.cpu)).join(', ')
}

function times(value: number): string {
  return `${value < 20 ? value.toFixed(1) : value.toFixed(0)} ×`
}
