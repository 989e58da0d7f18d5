/**
 * Numbers as long runs take and show them.
 */
/** For a reader: 1,234,567. */
export function figure(value: number): string {
  return value.toLocaleString('en-US')
}

/** @throws Error that says that it is none, for a person who typed it */
export function wholeNumber(text: string): number {
  if (!/^[0-9]{1,6}$/.test(text)) throw new Error(`${text} is no number for this`)
  return Number(text)
}
