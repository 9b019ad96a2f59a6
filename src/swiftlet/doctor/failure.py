"""What a run that has failed says, in people's words: the explanation that is printed below its last words."""

from __future__ import annotations

from collections.abc import Mapping

from swiftlet.doctor.explain import explain
from swiftlet.doctor.log_files import process_logs, read_logs
from swiftlet.doctor.logs import Line, lines_of
from swiftlet.doctor.tables import TableError, language, load
from swiftlet.doctor.wording import in_words
from swiftlet.errors import UsageError
from swiftlet.log import warning

EXCEPTION = "program.exception"  # which the last words are themselves
OURS = "error: "  # how a message of our own begins, which has its hint already


def explain_failure(
    messages: Mapping[int, str], environ: Mapping[str, str], pids: Mapping[int, int] | None = None
) -> str:
    """Return the first cause of what ranks said at their end, empty where nothing in it is known.

    Args:
        messages: the last words of each rank: a traceback, or a message of ours, which needs no explanation.
        pids: processes of ranks, by which the logs of the device's software are found.
    """
    if all(message.startswith(OURS) for message in messages.values()):
        return ""
    lines: list[Line] = []
    for rank, message in messages.items():
        lines += _of_rank(rank, lines_of(message, f"rank {rank}") if not message.startswith(OURS) else [])
    for rank, pid in (pids or {}).items():
        for path in process_logs(environ, pid):
            try:
                lines += _of_rank(rank, read_logs([str(path)]).lines)
            except (UsageError, OSError) as error:  # rotated away since, or not for this user
                warning(f"the log {path} was not read: {error}")
    try:
        found = explain(lines, load(environ))
    except TableError as error:
        return str(error)
    errors = [one.cause.id for one in (found.first, *found.others) if one and one.grade == 0]
    if not found.symptoms and errors in ([], [EXCEPTION]):
        return ""
    is_in_process_log = bool(found.excerpt) and not found.excerpt[0].source.startswith("rank ")
    return in_words(found, language(environ), with_evidence=is_in_process_log)


def _of_rank(rank: int, lines: list[Line]) -> list[Line]:
    for line in lines:
        line.rank = line.rank if line.rank is not None else str(rank)
    return lines
