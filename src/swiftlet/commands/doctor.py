"""`swift doctor`: what is wrong with this machine, or, with --log, the first cause that logs show."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console

from swiftlet.commands.console import Output
from swiftlet.config.fields import arg
from swiftlet.config.parse import Parsed
from swiftlet.doctor import tables
from swiftlet.doctor.examine import examine
from swiftlet.doctor.explain import explain
from swiftlet.doctor.finding import ERROR, EXIT_CODES, NOTE, WARNING, Finding, exit_code
from swiftlet.doctor.live import check_live
from swiftlet.doctor.log_files import read_logs
from swiftlet.doctor.scene import Scene, look_around, table
from swiftlet.doctor.wording import as_json, in_words, to_json
from swiftlet.errors import SwiftletError, UsageError
from swiftlet.log import redact

EXAMPLE = "swift doctor --log output/rank-*.log ~/ascend/log"
AUTO = "AUTO"
SHOWN = ("torch", table("compatibility")["plugin"], "transformers", "peft", "deepspeed")
STYLES = {ERROR: "red", WARNING: "yellow", NOTE: "green"}
TITLES = {
    "en": {
        ERROR: "error",
        WARNING: "warning",
        NOTE: "note",
        "do": "do",
        "fine": "nothing is wrong for a run that is started here",
    },
    "zh": {
        ERROR: "错误",
        WARNING: "警告",
        NOTE: "说明",
        "do": "处理",
        "fine": "没有发现影响在此启动的任务的问题",
    },
}


@dataclass(frozen=True)
class ReportArgs:
    """Report"""

    log: tuple[str, ...] = arg(
        (), "Explain these logs instead (files or folders, of all ranks): the first cause, and whose it is"
    )
    json: bool = arg(False, "Print one JSON object")
    lang: str = arg(
        AUTO, "Language of causes and remedies; AUTO: that of LANG", choices=(AUTO, *tables.LANGUAGES)
    )
    live: bool = arg(True, "Try the devices: a matmul, bf16 attention, an all-reduce of two processes")
    live_timeout: float = arg(60.0, "Longest time for that [seconds]", above=0)


@dataclass(frozen=True)
class DoctorArgs:
    """Find what is wrong with this machine, or in logs. Works without a network.

    Exit codes: 0 nothing is wrong for a run here, 1 it will fail, 10 it may fail; with --log 10 when the logs do
    not show the cause.
    """

    report: ReportArgs = field(default_factory=ReportArgs)


ARGS = DoctorArgs


def check(parsed: Parsed, environ: Mapping[str, str]) -> list[SwiftletError]:
    """Return the mistakes of the command line."""
    mistakes = list(parsed.mistakes)
    if "log" in parsed.given and not parsed.args.report.log:
        mistakes.append(UsageError("--log has no value", "type --log FILE"))
    idle = sorted(parsed.given & {"live", "live_timeout"})
    if parsed.args.report.log and idle:
        mistakes.append(UsageError(f"--{idle[0]} has no effect with --log", f"leave --{idle[0]} out"))
    return mistakes


def run(parsed: Parsed) -> int:
    """Print what is wrong and return an exit code of the worst of it."""
    options = parsed.args.report
    language = tables.language(os.environ, options.lang)
    if options.log:
        return run_logs(options.log, language, options.json)
    scene = look_around(os.environ)
    findings = examine(scene)
    if options.live and scene.version("torch") is not None:
        findings += check_live(scene, options.live_timeout)
    if options.json:
        print(to_json(report(scene, findings, language)))
    else:
        show(findings, language, Output(highlight=False))
    return exit_code(findings)


def run_logs(paths: Sequence[str], language: str, with_json: bool) -> int:
    """Explain logs; nothing of a secret in them is printed."""
    log = read_logs(paths)
    explanation = explain(log.lines, tables.load(os.environ))
    if with_json:
        print(redact(to_json(as_json(explanation, language, log.notes))))
    else:
        print(redact(in_words(explanation, language, log.notes)))
    return 0 if explanation.first else EXIT_CODES[WARNING]


def report(scene: Scene, findings: Sequence[Finding], language: str) -> dict[str, object]:
    """Return the findings and what was looked at, for a program."""
    here = scene.installation
    return {
        "exit_code": exit_code(findings),
        "findings": [finding.as_json(language) for finding in findings],
        "python": ".".join(map(str, scene.python)),
        "packages": {name: scene.version(name) for name in SHOWN},
        "toolkit": here.toolkit_version,
        "driver": here.driver,
        "devices": {"npus": scene.machine.npus, "gpus": scene.machine.gpus},
    }


def show(findings: Sequence[Finding], language: str, console: Console) -> None:
    """Print the worst first: one cause and one command each."""
    words = TITLES[language]
    for severity in (ERROR, WARNING, NOTE):
        for finding in (one for one in findings if one.severity == severity):
            console.print(f"[{STYLES[severity]}]{words[severity]}[/] ", end="")
            console.print(finding.cause(language), markup=False, soft_wrap=True)
            if finding.command(language):
                console.print(f"    {words['do']}: {finding.command(language)}", markup=False, soft_wrap=True)
    if exit_code(findings) == 0:
        console.print(words["fine"], style=STYLES[NOTE])
