"""Why a hub did not hand out a repository, and what to type: the errors of both clients in words.

Imports the clients inside functions: they are slow.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from swiftlet.errors import first_line

AGAIN = "type the same command again: what has been fetched is kept"
LATER = "wait some minutes and type the same command again: what has been fetched is kept"


class Asked(NamedTuple):
    """What was asked of a hub.

    Attributes:
        page: of the repository, for people.
        token: what to type to be known there.
    """

    hub: str
    kind: str
    revision: str | None
    page: str
    token: str


class Refusal(OSError):
    """A hub was reached and does not hand out all that was asked for; `hint` says what to type."""

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(reason)
        self.hint = hint


def of_hugging_face(error: BaseException, asked: Asked) -> Refusal:
    """Return what an error of Hugging Face's client comes to."""
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        return of_hugging_face(error.__cause__, asked)  # of a file: the cause says what went wrong
    if isinstance(error, GatedRepoError):
        return Refusal(
            f"{asked.hub} gives it only to those who have asked for access",
            f"ask for it at {asked.page}, then: {asked.token}",
        )
    if isinstance(error, RepositoryNotFoundError):
        return _not_there(asked)
    if isinstance(error, RevisionNotFoundError):
        return _no_revision(asked)
    return _by_status(getattr(getattr(error, "response", None), "status_code", None), error, asked)


def of_modelscope(error: BaseException, asked: Asked) -> Refusal:
    """Return what an error of ModelScope's client comes to."""
    from modelscope_hub.errors import FileDownloadError, HubError, NotExistError

    if isinstance(error.__cause__, HubError) and not isinstance(error, HubError):
        return of_modelscope(error.__cause__, asked)  # its functions of old wrap some of the new ones' errors
    failed: Mapping[str, BaseException] = error.failed_files if isinstance(error, FileDownloadError) else {}
    if failed:
        path, cause = next(iter(failed.items()))
        found = of_modelscope(cause, asked)
        return Refusal(f"{len(failed)} files failed, the first is {path}: {found}", found.hint)
    if isinstance(error, NotExistError):
        return _no_revision(asked) if asked.revision else _not_there(asked)
    return _by_status(getattr(error, "status_code", None), error, asked)


def _not_there(asked: Asked) -> Refusal:
    return Refusal(
        f"{asked.hub} shows no {asked.kind} of this id: the id is wrong, or the {asked.kind} is private",
        f"check the id at {asked.page}; for a private one: {asked.token}",
    )


def _no_revision(asked: Asked) -> Refusal:
    return Refusal(
        f"{asked.hub} shows no revision {asked.revision!r} of it",
        f"give a branch, tag or commit of {asked.page}; for a private {asked.kind}: {asked.token}",
    )


def _by_status(status: int | None, error: BaseException, asked: Asked) -> Refusal:
    if status in (401, 403):
        return Refusal(
            f"{asked.hub} does not give it to whoever asks, or not with this token ({status})",
            f"{asked.token}; its account must be able to see {asked.page}",
        )
    if status == 429:
        return Refusal(f"{asked.hub} takes no more requests for now ({status})", LATER)
    return Refusal(first_line(error), AGAIN)
