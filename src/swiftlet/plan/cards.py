"""The table of devices for plans, and the ones a user names: 8x910B3, 1xH200, 4xA100-80G. Data only."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from swiftlet.errors import UsageError, suggest

TABLE = Path(__file__).parent / "data" / "cards.json"
COUNT = re.compile(r"(\d+)[xX*](.+)")
VENDOR = re.compile(r"\b(?:(?:nvidia|huawei|ascend|geforce|tesla)[ _-]?)+")
NAME = re.compile(r"[A-Za-z0-9 _.()+-]+")  # what a user may write of a device
HOST = "CPU"


@dataclass(frozen=True)
class Card:
    """What is known of one device; figures that nobody measured are called assumed in `sources`.

    Args:
        idle_gib: memory in use before any process starts.
        context_gib: memory that a process needs before its first tensor.
        communicator_gib: buffers of one group of processes.
        tflops: peak of 16-bit matrix products [10^12 operations a second].
        link_gb_s: what a collective really moves [GB/s a device].
        gather_ms: shortest time of one gather of a sharding engine, with its hooks.
        launch_us: time that the host needs to start one operator.
        is_host: the device is the processor itself: nothing runs beside it, so times add up.
        is_measured: launch, bandwidth and rate come from `swift plan --calibrate` on this machine.
        keeps_inputs: its fused operators keep what they are given, where those of others keep less.
        matrix_gflops: rows of a product -> measured rate in fp32; empty where not measured.
    """

    name: str
    memory_gib: float
    idle_gib: float
    context_gib: float
    communicator_gib: float
    tflops: float
    bandwidth_gb_s: float
    link_gb_s: float
    gather_ms: float
    launch_us: float
    host_link_gb_s: float
    has_bf16: bool
    sources: str
    is_host: bool = False
    is_measured: bool = False
    keeps_inputs: bool = False
    matrix_gflops: tuple[tuple[int, float], ...] = ()


def read_cards() -> dict[str, Card]:
    """Return the table by name."""
    rows = json.loads(TABLE.read_text(encoding="utf-8"))
    return {name: Card(name, **row) for name, row in rows.items()}


def find_card(name: str) -> Card | None:
    """Return the row of a device, as its driver or a user writes it (Ascend910B4, A100-SXM4-40GB, H100), or None.

    What follows the model says no more than the memory; a name without it, or that a model begins with (910B), is the
    largest such card.
    """
    wanted = VENDOR.sub("", name.lower())
    sizes = {size.removesuffix("b") for size in re.findall(r"(?<![a-z0-9])\d+gb?\b", wanted)}
    short = re.sub(r"[^a-z0-9]", "", wanted)
    found = []
    for card in read_cards().values():
        model, _, size = card.name.lower().partition("-")
        is_named = re.match(r"[ _-]?".join(model) + r"(?!\d)", wanted) is not None
        is_begin = bool(short) and model.startswith(short) and not re.match(r"\d{2}", model[len(short) - 1 :])
        if (is_named or is_begin) and not (size and sizes and size not in sizes):
            found.append(card)
    return max(found, key=lambda card: (len(card.name), card.memory_gib), default=None)


def like_card(name: str) -> Card:
    """Return the card whose rates stand for those of a device that is not in the table."""
    return read_cards()["910B3" if "ascend" in name.lower() else "A100-80G"]


def parse_devices(text: str) -> tuple[int | None, Card]:
    """Return how many of which device `text` names; None for the number where it names none.

    Raises:
        UsageError: the table has no such device.
    """
    match = COUNT.fullmatch(text.strip())
    number, name = (int(match[1]), match[2]) if match else (None, text.strip())
    card = find_card(name) if NAME.fullmatch(name) else None
    if card is None or number == 0:
        reason = "name at least one device" if card else suggest(name, read_cards())
        raise UsageError(f"--device {text}: no such device in the table", f"{reason} (such as 8x910B3)")
    return number, card


def host_card(memory_gib: float, measured: Mapping[str, Any] | None = None) -> Card:
    """Return the processor of this machine as a device; rates are guesses until `swift plan --calibrate`."""
    card = Card(
        HOST, memory_gib, 0.0, 0.35, 0.02, 0.1, 10.0, 2.0, 1.0, 8.0, 10.0, True,
        "memory: this machine", is_host=True,
    )  # fmt: skip
    if not measured:
        card = replace(card, sources=f"{card.sources}; rates: guesses, swift plan --calibrate measures them")
    return with_measured(card, measured)


def with_measured(card: Card, measured: Mapping[str, Any] | None) -> Card:
    """Return the card with what was measured on this machine, if anything, in the place of its table's figures."""
    if not measured:
        return card
    rates = tuple((int(rows), float(rate)) for rows, rate in measured["matrix_gflops"])
    return replace(
        card,
        launch_us=float(measured["launch_us"]),
        bandwidth_gb_s=float(measured["bandwidth_gb_s"]),
        tflops=max(rate for _, rate in rates) / 1e3,
        matrix_gflops=rates,
        is_measured=True,
        sources=f"{card.sources}; launch, bandwidth and matrix rate measured on {measured['date']}",
    )
