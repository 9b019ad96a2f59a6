"""`swift completion SHELL`: a completion script made from the command table and the arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from swiftlet.config.args import ExportArgs, InferArgs, SftArgs
from swiftlet.config.commands import COMMANDS
from swiftlet.config.fields import arg, flags_of
from swiftlet.config.parse import Parsed
from swiftlet.errors import SwiftletError

SHELLS = ("bash", "zsh", "fish")
WITH_FLAGS = {"sft": SftArgs, "plan": SftArgs, "infer": InferArgs, "export": ExportArgs}
EXAMPLE = "swift completion --shell bash > ~/.local/share/bash-completion/completions/swift"


@dataclass(frozen=True)
class ShellArgs:
    """Shell"""

    shell: str = arg("bash", "Shell to complete in", choices=SHELLS)


@dataclass(frozen=True)
class CompletionArgs:
    """Print the completion script of a shell."""

    shell: ShellArgs = field(default_factory=ShellArgs)


ARGS = CompletionArgs


def check(parsed: Parsed, environ: Mapping[str, str]) -> list[SwiftletError]:
    """Return the mistakes of the command line."""
    return list(parsed.mistakes)


def _flag_words(name: str) -> str:
    return " ".join(f"--{flag}" for flag in flags_of(WITH_FLAGS[name]))


def script(shell: str, commands: list[str]) -> str:
    """Return the completion script of a shell."""
    if shell == "fish":
        lines = [f"complete -c swift -n __fish_use_subcommand -f -a '{' '.join(commands)}'"]
        for name in WITH_FLAGS:
            lines += [
                f"complete -c swift -n '__fish_seen_subcommand_from {name}' -l {flag}"
                for flag in flags_of(WITH_FLAGS[name])
            ]
        return "\n".join(lines)
    cases = "\n".join(f'    {name}) words="{_flag_words(name)}" ;;' for name in WITH_FLAGS)
    head = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    return f"""{head}_swift() {{
  local words="{" ".join(commands)}"
  if [ "$COMP_CWORD" -gt 1 ]; then
    case "${{COMP_WORDS[1]}}" in
{cases}
    *) words="" ;;
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
  [ -z "$words" ] || [ -n "${{COMPREPLY[*]}}" ] || COMPREPLY=($(compgen -f -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -F _swift swift"""


def run(parsed: Parsed) -> int:
    """Print the script."""
    print(script(parsed.args.shell.shell, list(COMMANDS)))
    return 0
