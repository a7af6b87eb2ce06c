import { CoracleError } from '../../errors.js'
import { type Command, type CommandHelp, parseOptions } from '../command.js'

const help = {
  usage: 'completion bash|zsh',
  summary:
    "Prints a shell's completion of commands, flags, and names: of containers, images, volumes, networks and contexts.",
  options: (yargs) => yargs,
  examples: [['completion bash > /etc/bash_completion.d/coracle', 'for every shell of this host']],
  words: [1, 1],
} satisfies CommandHelp<unknown>

/** Commands by what they take the names of; those of a group with its name. */
const CONTAINERS =
  'attach clone commit cp diff exec export kill logs pause port rename restart rm start stats stop top unpause update wait'
const IMAGES = 'create history push rmi run save tag'
const MEMBERS: Readonly<Record<string, string>> = {
  container: `inspect move ${CONTAINERS}`,
  image: 'history inspect push rm save tag',
  volume: 'inspect rm',
  network: 'connect disconnect inspect rm',
  context: 'export inspect rm update use',
}

/** How names are asked for, and at the end of the line: of several kinds, all. */
const ASK: Readonly<Record<string, string>> = {
  container: "ps -a --format '{{.Names}}'",
  image: "images --format '{{.Repository}}:{{.Tag}}'",
  volume: 'volume ls -q',
  network: "network ls --format '{{.Name}}'",
  context: 'context ls -q',
}

/** Flags whose value is a name. */
const NAMED: Readonly<Record<string, string>> = {
  '--context': 'context',
  '--network': 'network',
  '--volumes-from': 'container',
}

/** What one flag before the command has, where it is not for itself: `-H X` and `--host X`, but not `--host=X`. */
const VALUED = '-H|-c|-l|--host|--context|--config|--log-level|--tlscacert|--tlscert|--tlskey'

const GLOBALS =
  '--host --context --config --debug --log-level --tlsverify --tlscacert --tlscert --tlskey --help --version'

/**
 * Flags are asked of the command's own help, names of the engine that the flags before the command choose, when the key is
 * pressed: nothing of it can grow old.
 * @param tree the commands, and those of each group
 */
function script(tree: ReadonlyMap<string, readonly string[]>): string {
  const groups = [...tree].filter(([, members]) => members.length > 0)
  const alternatives = (words: string, group = ''): string =>
    words
      .split(' ')
      .map((word) => `${group}:${word}`)
      .join('|')
  return `# Completion of coracle, for bash (and for zsh, by its bashcompinit).
_coracle_names() {
  case $1 in
${Object.entries(ASK)
  .map(([kind, words]) => `  ${kind}) coracle "\${globals[@]}" ${words} ;;`)
  .join('\n')}
  all) for kind in ${Object.keys(ASK).join(' ')}; do _coracle_names $kind; done ;;
  esac 2>/dev/null
}
_coracle() {
  local word=\${COMP_WORDS[COMP_CWORD]} before=\${COMP_WORDS[COMP_CWORD-1]} at=1 kind= words= command= member=
  local -a globals=()
  # What stands before the command. bash takes --flag=value as three words.
  while [ "$at" -lt "$COMP_CWORD" ]; do
    case \${COMP_WORDS[at]} in
    ${VALUED})
      [ "\${COMP_WORDS[at+1]}" = = ] && globals+=("\${COMP_WORDS[at]}=\${COMP_WORDS[at+2]}") && at=$((at+3)) && continue
      globals+=("\${COMP_WORDS[at]}" "\${COMP_WORDS[at+1]}")
      at=$((at+2))
      ;;
    -*) globals+=("\${COMP_WORDS[at]}"); at=$((at+1)) ;;
    *) break ;;
    esac
  done
  [ "$word" = = ] && word=
  [ "$before" = = ] && before=\${COMP_WORDS[COMP_CWORD-2]}
  if [ "$at" -lt "$COMP_CWORD" ]; then
    command=\${COMP_WORDS[at]}
    case $command in
${groups.map(([name, all]) => `    ${name}) words='${all.join(' ')}' ;;`).join('\n')}
    esac
  fi
  # Of a group, which of its commands.
  [ -z "$words" ] || { at=$((at+1)); member=\${COMP_WORDS[at]}; }
  case $before in
${Object.entries(NAMED)
  .map(([flag, kind]) => `  ${flag}) kind=${kind} ;;`)
  .join('\n')}
  -c) [ -n "$command" ] || kind=context ;;
  esac
  if [ -n "$kind" ]; then
    words=
  elif [ -z "$command" ]; then
    # The value of a flag before the command is none of ours.
    [ "$at" -gt "$COMP_CWORD" ] || words='${[...tree.keys()].join(' ')}'
    case $word in -*) words='${GLOBALS}' ;; esac
  elif [ "$at" -lt "$COMP_CWORD" ]; then
    words=
    case $word in
    -*) words=$(coracle "$command" $member --help 2>/dev/null | grep -oE -- '--[a-z][a-z-]*' | sort -u) ;;
    *)
      [ -n "$member" ] || { member=$command; command=; }
      case $command:$member in
${Object.entries(MEMBERS)
  .map(([group, names]) => `      ${alternatives(names, group)}) kind=${group} ;;`)
  .join('\n')}
      ${alternatives(CONTAINERS)}) kind=container ;;
      ${alternatives(IMAGES)}) kind=image ;;
      :inspect) kind=all ;;
      esac
      ;;
    esac
  fi
  [ -z "$kind" ] || words=$(_coracle_names $kind)
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  # Neither a name nor a flag: a file.
  [ -n "$words" ] || COMPREPLY=($(compgen -f -- "$word"))
}
complete -F _coracle coracle
`
}

/** @param tree as {@link script} has it */
export const completion = (tree: ReadonlyMap<string, readonly string[]>): Command => ({
  run: async ({ words }) => {
    const options = await parseOptions(words, help)
    if (!options) return 0
    const [shell] = options._
    if (shell !== 'bash' && shell !== 'zsh')
      throw new CoracleError('USAGE', `there is completion for bash and zsh, and none for '${shell}'`)
    const first = shell === 'zsh' ? '#compdef coracle\nautoload -U +X bashcompinit && bashcompinit\n' : ''
    process.stdout.write(first + script(tree))
    return 0
  },
})
