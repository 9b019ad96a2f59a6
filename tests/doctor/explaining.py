"""What logs are explained as, by the tables of this package."""

from __future__ import annotations

from swiftlet.doctor.explain import explain
from swiftlet.doctor.logs import lines_of
from swiftlet.doctor.tables import load

TABLES = load({})


def explained(text, source="any.log"):
    return explain(lines_of(text, source), TABLES)


def cause_of(text):
    first = explained(text).first
    return first.cause.id if first else "unknown"
