import { CoracleError } from '../../errors.js'
import { type Command, type CommandHelp, parseOptions } from '../command.js'

const help = {
  usage: 'completion bash|zsh',
  summary: "Prints a shell's completion of commands, flags, and names of containers and images.",
  options: (yargs) => yargs,
  examples: [['completion bash > /etc/bash_completion.d/coracle', 'for every shell of this host']],
  words: [1, 1],
} satisfies CommandHelp<unknown>

/** Commands by what they take the names of. */
const CONTAINERS =
  'attach commit cp diff exec export inspect kill logs pause port rename restart rm start stats stop top unpause update wait'
const IMAGES = 'create history push rmi run save tag'

/**
 * Flags are asked of the command's own help, names of the engine, when the key is pressed: nothing of it can grow old.
 * @param tree the commands, and those of each group
 */
function script(tree: ReadonlyMap<string, readonly string[]>): string {
  const groups = [...tree].filter(([, members]) => members.length > 0)
  return `# Completion of coracle, for bash (and for zsh, by its bashcompinit).
_coracle() {
  local word=\${COMP_WORDS[COMP_CWORD]} command=\${COMP_WORDS[1]} at=2 words=
  case $command in
${groups.map(([name, members]) => `    ${name}) at=3; words='${members.join(' ')}' ;;`).join('\n')}
  esac
  if [ "$COMP_CWORD" -eq 1 ]; then
    words='${[...tree.keys()].join(' ')}'
  elif [ "$COMP_CWORD" -ge "$at" ]; then
    case $word in
    -*) words=$(coracle "\${COMP_WORDS[@]:1:at-1}" --help 2>/dev/null | grep -oE -- '--[a-z][a-z-]*' | sort -u) ;;
    *)
      case \${COMP_WORDS[at-1]} in
      ${CONTAINERS.replaceAll(' ', '|')}) words=$(coracle ps -a --format '{{.Names}}' 2>/dev/null) ;;
      ${IMAGES.replaceAll(' ', '|')}) words=$(coracle images --format '{{.Repository}}:{{.Tag}}' 2>/dev/null) ;;
      *) words= ;;
      esac
      ;;
    esac
  fi
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
