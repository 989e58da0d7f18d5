/**
 * What every LVM command of ours is told before anything else, whatever its lvm.conf says: the form of reports and messages, and which devices
 * it leaves alone. LVM takes `--config` once, so that both go into the same one.
 *
 * Tried with 2.03.16 and 2.03.31, setting by setting (test/kernel/lvm-settings.test.ts).
 */
import { filterSetting, type FilterOptions, type FilterPlaces } from './filter.ts'

/** By section. What decides between JSON and tables, units and their suffixes is given as options, which go before any setting. */
const pinned: Readonly<Record<string, readonly string[]>> = {
  report: [
    // Fields by their names, in quotes: `LVM2_LV_NAME`, or a bare word, is nothing that we read.
    ...['prefixes=0', 'quoted=1', 'output_format="basic"', 'headings=1', 'columns_as_rows=0', 'buffered=1'],
    ...['aligned=1', 'separator=" "', 'list_item_separator=","', 'compact_output=0', 'compact_output_cols=""'],
    // Without its brackets a hidden volume passes for one that can be asked for.
    ...['mark_hidden_devices=1', 'binary_values_as_numeric=0']
  ],
  // Errors on stderr, where 2.03.26 and later would put them into the report; nothing before a report's lines.
  log: ['report_command_log=0', 'command_names=0', 'prefix="  "', 'silent=0', 'verbose=0'],
  // Else a snapshot is said to be taken, and there is none.
  global: ['test=0']
}

/**
 * Options for an LVM command, to be put after its name.
 *
 * @param command the words that start LVM
 * @throws DM_LVM_FAILED when LVM cannot be asked for the filter that it has
 */
export async function settingOptions(
  command: readonly string[],
  options: FilterOptions = {},
  places?: FilterPlaces
): Promise<string[]> {
  const sections = Object.entries(pinned).map(([section, settings]) => `${section} { ${settings.join(' ')} }`)
  const filter = await filterSetting(command, options, places)
  return ['--config', [...sections, ...(filter === undefined ? [] : [filter])].join(' ')]
}
