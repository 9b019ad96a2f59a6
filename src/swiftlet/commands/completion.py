"""`swift completion --shell SHELL`: a completion script made from the command table and the arguments."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from swiftlet.config.commands import COMMAND_ALIASES, COMMANDS
from swiftlet.config.fields import arg, flags_of
from swiftlet.config.parse import Parsed
from swiftlet.errors import SwiftletError

SHELLS = ("bash", "zsh", "fish")
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


def flags_by_command() -> dict[str, list[str]]:
    """Return the flags of every command, also by its other names."""
    modules = {
        name: importlib.import_module(f"swiftlet.commands.{row.module}") for name, row in COMMANDS.items()
    }
    flags = {name: list(flags_of(module.ARGS)) for name, module in modules.items()}
    return {**flags, **{alias: flags[words[0]] for alias, words in COMMAND_ALIASES.items()}}


def script(shell: str) -> str:
    """Return the completion script of a shell."""
    commands = flags_by_command()
    if shell == "fish":
        lines = [f"complete -c swift -n __fish_use_subcommand -f -a '{' '.join(commands)}'"]
        for name, flags in commands.items():
            lines += [
                f"complete -c swift -n '__fish_seen_subcommand_from {name}' -l {flag}" for flag in flags
            ]
        return "\n".join(lines)
    cases = "\n".join(
        f'    {name}) words="{" ".join(f"--{flag}" for flag in flags)}" ;;'
        for name, flags in commands.items()
    )
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
    print(script(parsed.args.shell.shell))
    return 0
