"""What `swift plan --calibrate` measures of this machine, and where it is kept: a file in the cache folder."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from swiftlet import log
from swiftlet.config.places import cache_folder
from swiftlet.errors import UsageError
from swiftlet.files import write_whole
from swiftlet.models.geometry import Geometry
from swiftlet.plan.setting import Setting

FILE = "calibration.json"
ROUNDS = 5
TINY, TINY_TOKENS = Geometry(32, 8, 2, 2, 64, 64, qkv_bias=True), 16
ROWS = (16, 64, 256, 1024, 4096)
WIDTH, DEPTH = 2048, 1024
MOVED_BYTES = 256 * 2**20


def calibration_file(environ: Mapping[str, str]) -> Path:
    """Return where the measurements of this machine are kept."""
    return cache_folder(environ) / FILE


def measured_here(name: str, environ: Mapping[str, str]) -> dict[str, Any] | None:
    """Return what was measured of a device of this machine, None where nothing was.

    Raises:
        UsageError: the file holds no such measurements.
    """
    path = calibration_file(environ)
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get(name)
        if found is not None:
            _check(found)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{path} holds no measurements of {name}: {type(error).__name__}: {error}",
            f"remove it, or measure again: rm {path}; swift plan --calibrate",
        ) from error
    return dict(found) if found is not None else None


def _check(measured: Mapping[str, Any]) -> None:
    """Raise what a wrong measurement raises where it is used."""
    rates = [float(rate) for rows, rate in measured["matrix_gflops"] if int(rows) > 0]
    figures = [float(measured["launch_us"]), float(measured["bandwidth_gb_s"]), min(rates)]
    if not all(figure > 0 for figure in figures) or not isinstance(measured["date"], str):
        raise ValueError("its figures must be above 0")


def calibrate(kind: str) -> dict[str, Any]:
    """Measure launch time, bandwidth and matrix rate of this machine's device, keep and log them.

    Raises:
        UsageError: the file in which they are kept is damaged.
    """
    from swiftlet.device.spec import open_device
    from swiftlet.plan.cards import find_card

    device = open_device(kind, environ=os.environ)
    card = find_card(device.name) if device.kind != "cpu" else None
    name = card.name if card else device.kind
    measured_here(name, os.environ)  # what cannot be read is said before it is measured for
    measured = measure(device) | {"date": date.today().isoformat(), "device": device.name}
    path = calibration_file(os.environ)
    path.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    write_whole(path, json.dumps(known | {name: measured}, indent=2))
    rates = ", ".join(f"{rate:.0f} at {rows} rows" for rows, rate in measured["matrix_gflops"])
    log.info(
        f"{device.name}: {measured['launch_us']:.1f} us to launch, {measured['bandwidth_gb_s']:.1f} GB/s, "
        f"GFLOP/s of products: {rates}"
    )
    log.info(f"kept in {path}")
    return measured


def measure(device: Any) -> dict[str, Any]:
    """Return launch time [us], bandwidth [GB/s] and rates of products [GFLOP/s] by rows, medians of a few rounds."""
    import torch

    from swiftlet.device.spec import DTYPES

    where, dtype = device.torch_device, DTYPES[device.default_dtype]

    def seconds(work: Callable[[], object]) -> float:
        work()
        times = []
        for _ in range(ROUNDS):
            device.synchronize()
            start = time.perf_counter()
            work()
            device.synchronize()
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    launching, num_kernels = smallest_step(where)
    big = torch.ones(MOVED_BYTES // 4, device=where)
    other = torch.empty_like(big)
    moving = seconds(lambda: torch.mul(big, 1.5, out=other))
    rates = []
    weight = torch.randn(WIDTH, DEPTH, device=where, dtype=dtype)
    for rows in ROWS:
        x = torch.randn(rows, DEPTH, device=where, dtype=dtype)
        took = seconds(lambda x=x: torch.nn.functional.linear(x, weight))
        rates.append((rows, 2 * rows * WIDTH * DEPTH / took / 1e9))
    return {
        "launch_us": seconds(launching) / num_kernels * 1e6,
        "bandwidth_gb_s": 2 * MOVED_BYTES / moving / 1e9,
        "matrix_gflops": rates,
    }


def smallest_step(device: Any) -> tuple[Callable[[], object], float]:
    """Return a step of our own over a model too small to compute anything, and how many kernels it launches.

    Its time over that number is what a kernel costs the host: the library's call and our Python around it.
    """
    import torch
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    from swiftlet.commands.plan_trace import config_of
    from swiftlet.models import tuner
    from swiftlet.models.causal import build_causal
    from swiftlet.plan.timing import num_kernels

    config = config_of(TINY)
    model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config).to(device)
    causal = build_causal(tuner.apply_lora(model, tuner.LoraSettings()))
    causal.train()
    ids = torch.arange(TINY_TOKENS, device=device)
    labels = ids.clone()
    labels[0] = -100

    def step() -> None:
        causal(ids, ids, [0, TINY_TOKENS], labels).loss_sum.backward()

    return step, num_kernels(TINY, Setting(itemsize=4, tokens=TINY_TOKENS))
