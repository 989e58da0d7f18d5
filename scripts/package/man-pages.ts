/**
 * Man pages and bash completion, made from the definitions of the commands: they say what `--help` says.
 */
import type { Argument, Command, Option } from 'commander'

export interface ManPage {
  /** `deltamapper-delta.1` */
  readonly name: string
  /** troff, in the macros of man(7) */
  readonly text: string
}

export interface Edition {
  readonly version: string
  /** `2026-11-30`, at the foot of a page. */
  readonly date: string
}

/** A page for the program, and one for each command, with its subcommands in it. */
export function manPages(program: Command, edition: Edition): ManPage[] {
  const pages = [program, ...program.commands].map((command) => ({
    name: `${pageName(command)}.1`,
    text: manPage(command, edition)
  }))
  return pages
}

function manPage(command: Command, { version, date }: Edition): string {
  const name = pageName(command)
  const isProgram = command.parent === null
  const summary = isProgram
    ? 'tell which blocks of a Linux volume are allocated or changed'
    : command.summary() || command.description()
  const others = isProgram ? command.commands : [command.parent ?? command]
  return [
    `.TH ${name.toUpperCase()} 1 "${date}" "deltamapper ${version}" "User Commands"`,
    `.SH NAME\n${name} \\- ${escaped(summary)}`,
    `.SH SYNOPSIS\n${synopses(command)}`,
    ...body(command, '.SH'),
    ...(isProgram ? [`.SH COMMANDS\n${command.commands.map(commandItem).join('\n')}`] : subcommands(command)),
    `.SH SEE ALSO\n${others.map((each) => `.BR ${escaped(pageName(each))} (1)`).join(',\n')}`,
    `The documentation is in /usr/share/doc/deltamapper/docs; errors.md has every error code.`,
    ''
  ].join('\n')
}

function subcommands(command: Command): string[] {
  return command.commands.flatMap((each) => [
    `.SH "${escaped(`${each.parent?.name()} ${each.name()}`.toUpperCase())}"\n${synopses(each)}`,
    ...body(each, '.SS')
  ])
}

/** Description, arguments, options and what help has after them. */
function body(command: Command, heading: '.SH' | '.SS'): string[] {
  const help = command.createHelp()
  const section = (title: string, items: string[]) =>
    items.length > 0 ? [`${heading} ${title}\n${items.join('\n')}`] : []
  const described = paragraphs(command.description())
  return [
    ...(heading === '.SH' ? [`.SH DESCRIPTION\n${described}`] : [`.PP\n${described}`]),
    ...section('ARGUMENTS', help.visibleArguments(command).map(argumentItem)),
    ...section(
      'OPTIONS',
      help.visibleOptions(command).map((option) => item(option.flags, help.optionDescription(option)))
    ),
    ...section('NOTES', [textAfterHelp(command)].filter((each) => each !== '').map(asItIs))
  ]
}

const pageName = (command: Command): string =>
  command.parent === null ? command.name() : `${command.parent.name()}-${command.name()}`

const commandItem = (command: Command): string =>
  `.TP\n.BR ${escaped(pageName(command))} (1)\n${escaped(command.summary() || command.description())}`

const argumentItem = (argument: Argument): string => item(argument.name(), argument.description)

const item = (term: string, text: string): string => `.TP\n.B ${escaped(term)}\n${escaped(text)}`

function synopses(command: Command): string {
  const words = [...ancestors(command), command].map((each) => each.name()).join(' ')
  return command
    .usage()
    .split(/\n\s*/)
    .map((line) => `.B ${escaped(line.startsWith(words) ? line : `${words} ${line}`)}`)
    .join('\n.br\n')
}

function ancestors(command: Command): Command[] {
  return command.parent === null ? [] : [...ancestors(command.parent), command.parent]
}

/** What was added to a command's help, which Commander gives only by printing all of it. */
function textAfterHelp(command: Command): string {
  let text = ''
  const before = command.configureOutput()
  command.configureOutput({ ...before, writeOut: (each) => (text += each) })
  command.outputHelp()
  command.configureOutput(before)
  return text.slice(command.helpInformation().length).trim()
}

const paragraphs = (text: string): string => text.split(/\n\n+/).map(escaped).join('\n.PP\n')

const asItIs = (text: string): string => `.nf\n${escaped(text)}\n.fi`

/** troff's own characters, and lines that it would take for requests. */
function escaped(text: string): string {
  return text
    .replaceAll('\\', '\\e')
    .replaceAll('-', '\\-')
    .replace(/^(?=[.'])/gm, '\\&')
}

/** Completes commands, subcommands, options and the values of options that have a list of them; then names of files. */
export function bashCompletion(program: Command): string {
  const commands = [program, ...program.commands.flatMap((each) => [each, ...each.commands])].map((command) => ({
    path: [...ancestors(command), command]
      .slice(1)
      .map((each) => each.name())
      .join(' '),
    words: [...command.commands.map((each) => each.name()), ...optionWords(command)],
    options: command.options
  }))
  const known = commands.filter(({ path }) => path !== '').map(({ path }) => `      '${path}') path='${path}' ;;`)
  const values = commands.flatMap(({ path, options }) =>
    options
      .filter(({ argChoices }) => argChoices !== undefined)
      .map(
        (option) =>
          `    ${flagsOf(option)
            .map((flag) => `'${path} ${flag}'`)
            .join('|')}) words='${option.argChoices?.join(' ')}' ;;`
      )
  )
  const words = commands.map((each) => `    '${each.path}') words='${each.words.join(' ')}' ;;`)
  return `# bash completion for deltamapper: made from the definitions of its commands
_deltamapper() {
  local word=\${COMP_WORDS[COMP_CWORD]} before=\${COMP_WORDS[COMP_CWORD-1]} path='' words='' each
  for each in "\${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
    case "\${path:+$path }$each" in
${known.join('\n')}
    esac
  done
  case "$path $before" in
${values.join('\n')}
  esac
  [[ -n $words ]] || case $path in
${words.join('\n')}
  esac
  mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
}
complete -o bashdefault -o default -F _deltamapper deltamapper
`
}

function optionWords(command: Command): string[] {
  return command
    .createHelp()
    .visibleOptions(command)
    .flatMap((each) => each.long ?? [])
}

const flagsOf = (option: Option): string[] => [option.short, option.long].filter((each) => each !== undefined)
