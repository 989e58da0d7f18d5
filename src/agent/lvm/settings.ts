/**
 * The settings of every LVM command of ours, which override its lvm.conf: the form of reports and messages, and which
 * devices to leave out. LVM takes `--config` once, so both are in the same one.
 *
 * Tried with 2.03.16 and 2.03.31, setting by setting (test/kernel/lvm-settings.test.ts).
 */
import { filterSetting, type FilterOptions, type FilterPlaces } from './filter.ts'

/**
 * By section. The choice between JSON and tables, units and their suffixes are given as options, which override any
 * setting.
 */
const pinned: Readonly<Record<string, readonly string[]>> = {
  report: [
    // Field names in their plain form, in quotes: we do not read `LVM2_LV_NAME`, or a bare word.
    ...['prefixes=0', 'quoted=1', 'output_format="basic"', 'headings=1', 'columns_as_rows=0', 'buffered=1'],
    ...['aligned=1', 'separator=" "', 'list_item_separator=","', 'compact_output=0', 'compact_output_cols=""'],
    // Without its brackets, a hidden volume looks like one that can be asked for.
    ...['mark_hidden_devices=1', 'binary_values_as_numeric=0']
  ],
  // Errors on stderr (2.03.26 and later would put them into the report); nothing before a report's lines.
  log: ['report_command_log=0', 'command_names=0', 'prefix="  "', 'silent=0', 'verbose=0'],
  // Otherwise LVM reports that a snapshot was taken, and there is none.
  global: ['test=0']
}

/**
 * Options for an LVM command, to put after its name.
 *
 * @param command the words that start LVM
 * @throws DM_LVM_FAILED when LVM does not report its own filter
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
