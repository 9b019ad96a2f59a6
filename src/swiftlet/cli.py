"""The command table and the way in and out: the only place that prints an error and returns an exit code.

A command's module is imported when it is asked for, so that help and mistakes cost no more than they must. Such a
module has `ARGS` (its arguments), `EXAMPLE`, `check(parsed, environ)` (every mistake, without torch) and
`run(parsed) -> int`; one that runs in many processes has `prepare(parsed) -> dict`, which the launcher calls first.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType

from swiftlet import __version__
from swiftlet.config.commands import COMMAND_ALIASES, COMMANDS
from swiftlet.errors import SwiftletError, UsageError, raise_all, suggest
from swiftlet.stopping import Stopped, has_no_reader, leaving, send_nowhere

INTERRUPTED = 130
HELP_WORDS = ("-h", "--help", "help")


def overview() -> str:
    """Return the text of `swift --help`."""
    lines = ["swift: fine-tune and run large language models on NPUs, GPUs and CPUs", ""]
    lines += ["usage: swift COMMAND [FILE.yaml] [--flag value ...]", "", "commands:"]
    lines += [f"  {name:<11} {command.summary}" for name, command in COMMANDS.items()]
    lines += [f"  {name:<11} the same as {' '.join(words)}" for name, words in COMMAND_ALIASES.items()]
    lines += ["", "swift COMMAND --help lists its flags.", ""]
    lines += [
        "example:",
        "  swift sft --model_type tiny-math-chat --dataset demo-math-zh --output_dir output",
    ]
    return "\n".join(lines)


def find_command(word: str) -> tuple[str, list[str]]:
    """Return the command of a word and the arguments that its alias stands for.

    Raises:
        UsageError: there is no such command.
    """
    if word in COMMAND_ALIASES:
        name, *rest = COMMAND_ALIASES[word]
        return name, rest
    if word not in COMMANDS:
        from swiftlet.config.elsewhere import COMMANDS_ELSEWHERE

        hint = COMMANDS_ELSEWHERE.get(word) or suggest(word, [*COMMANDS, *COMMAND_ALIASES])
        if word.split()[:1] != [word]:
            hint = "quotes belong around single values, not around a command line"
        elif word.startswith("-"):
            hint = f"the command comes first: swift sft {word} ..."
        raise UsageError(f"unknown command {word!r}", hint)
    return word, []


def run_command(argv: Sequence[str]) -> int:
    """Run one command line and return its exit code.

    Raises:
        SwiftletError: a mistake, or several of them together.
    """
    if not argv:
        raise UsageError("no command is given", "type swift --help, or swift sft --help")
    if argv[0] in HELP_WORDS:
        if len(argv) > 1 and argv[0] == "help":
            return run_command([argv[1], "--help"])
        print(overview())
        return 0
    if argv[0] in ("-V", "--version", "version"):
        print(f"swiftlet {__version__}")
        return 0
    name, extra = find_command(argv[0])
    words = list(argv[1:]) if _names(argv[1:], extra[:1]) else [*extra, *argv[1:]]
    module = importlib.import_module(f"swiftlet.commands.{COMMANDS[name].module}")
    if words[:1] == ["help"] or any(word in HELP_WORDS[:2] for word in words):
        from swiftlet.config.help import command_help

        print(command_help(name, module.ARGS, module.EXAMPLE))
        return 0
    return _checked_run(name, module, words)


def _names(words: Sequence[str], flags: Sequence[str]) -> bool:
    """Return whether the words of a command line name one of these flags."""
    from swiftlet.config.aliases import canonical

    typed = {canonical(word[2:].partition("=")[0]) for word in words if word.startswith("--")}
    return any(flag[2:] in typed for flag in flags)


def _check_working_folder() -> None:
    """Check that relative paths lead somewhere, and that the absolute ones made of them can be written down.

    Raises:
        UsageError: the working folder was removed, or its name is not text.
    """
    try:
        str(Path.cwd()).encode()
    except OSError as error:
        raise UsageError(
            f"the working folder cannot be used: {error.strerror}", "type cd FOLDER first"
        ) from error
    except UnicodeEncodeError as error:
        raise UsageError(
            f"the name of the working folder is not UTF-8: {error.object!r}",
            "rename it in UTF-8, and set LC_ALL=C.UTF-8",
        ) from error


def _check_log_level() -> None:
    """Check the one variable that the log itself reads.

    Raises:
        UsageError: its level is not known.
    """
    from swiftlet.log import LEVEL, LEVELS

    asked = os.environ.get(LEVEL)
    if asked and asked.upper() not in LEVELS:
        raise UsageError(f"{LEVEL}={asked} is not known", f"choose one of {', '.join(LEVELS)}")


def _open_closed_streams() -> None:
    """Open what the shell has closed (2>&-): the next file would get its number, and with it what libraries print."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, os.O_RDWR)  # the lowest that is free: the stream's own
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8"))


def _escape_what_the_terminal_lacks() -> None:
    """Print letters that the encoding of standard output lacks as escapes, as standard error does."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.encoding.lower() != "utf-8":
        sys.stdout.reconfigure(errors="backslashreplace")


def _checked_run(name: str, module: ModuleType, words: list[str]) -> int:
    from swiftlet.config.parse import parse

    _check_working_folder()
    _check_log_level()
    parsed = parse(module.ARGS, words)
    mistakes = module.check(parsed, os.environ)
    if not COMMANDS[name].is_distributed:
        raise_all(mistakes)
        with leaving():
            return int(module.run(parsed))
    from swiftlet import launch

    shape, found = launch.read_shape(os.environ)
    if wrong := [*mistakes, *found]:
        launch.report_mistakes(shape, wrong)
        raise_all(wrong)
    with nullcontext() if shape.is_worker else leaving():
        if launch.is_watched(shape, parsed):
            return launch.launch(name, words, shape, module)
        return int(module.run(parsed))


def show_error(error: SwiftletError) -> str:
    """Return the text of a mistake as it is printed, without secrets."""
    from swiftlet.log import redact

    mistakes = getattr(error, "mistakes", (error,))
    return redact("\n".join(f"error: {mistake}" for mistake in mistakes))


def _explained(error: Exception) -> str:
    """Return what the software of a device says in an error, in people's words, where it is known."""
    from swiftlet.doctor.failure import explain_failure
    from swiftlet.log import redact

    text = explain_failure({0: "".join(traceback.format_exception(error))}, os.environ)
    return f"{redact(text)}\n" if text else ""


def _give_up_unwritable() -> None:
    """Let what standard error does not take be lost: at its end Python would try again, and exit with 120."""
    try:
        sys.stderr.flush()
    except OSError:
        send_nowhere(sys.stderr.fileno())


def _report(error: SwiftletError) -> int:
    """Say a mistake, here or by the watchdog, and return its exit code."""
    from swiftlet import heartbeat
    from swiftlet.log import tell

    if not heartbeat.is_watched():
        tell(show_error(error))
    heartbeat.end(error.exit_code, show_error(error))
    return error.exit_code


def _stopped(text: str, exit_code: int) -> int:
    """Say that a signal has ended this process, unless its watchdog, which passed it on, says so once for all."""
    from swiftlet import heartbeat
    from swiftlet.log import tell

    if not heartbeat.is_watched():
        tell(text)
    return exit_code


def _output_error() -> OSError | None:
    """Return why standard output takes nothing more, not even an empty line; what is left for it is then given up."""
    try:
        print(flush=True)
    except OSError as error:
        send_nowhere(sys.stdout.fileno())
        return error
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; every mistake becomes a message and an exit code."""
    from swiftlet.log import print_traceback, tell

    _open_closed_streams()
    _escape_what_the_terminal_lacks()
    sys.excepthook = print_traceback
    try:
        code = run_command(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return code
    except SwiftletError as error:
        return _report(error)
    except KeyboardInterrupt:
        return _stopped("interrupted", INTERRUPTED)
    except Stopped as stop:
        return _stopped(f"stopped by signal {stop.number}", 128 + stop.number)
    except (RuntimeError, ImportError, OSError) as error:
        from swiftlet import heartbeat

        has_left = isinstance(error, BrokenPipeError) and has_no_reader(sys.stdout.fileno())
        reason = _output_error() if isinstance(error, OSError) else None
        if has_left:
            return 0
        if reason is not None:
            hint = "make room where it goes, or send it elsewhere"
            return _report(SwiftletError(f"standard output cannot be written: {reason.strerror}", hint))
        if heartbeat.is_watched():
            raise  # its last words are the watchdog's to explain
        print_traceback(type(error), error, error.__traceback__)
        tell(_explained(error), end="")
        return 1
    finally:
        _give_up_unwritable()


if __name__ == "__main__":
    sys.exit(main())
