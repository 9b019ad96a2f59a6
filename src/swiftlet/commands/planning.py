"""From the arguments of sft to what planning knows: sizes, lengths, devices. Nothing is downloaded; no torch.

A config.json and tokenised rows at hand are taken first, then the family table and the statistics of the built-in
datasets; what was taken is told.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from swiftlet.commands.model_source import check_trainable, longest_sample, open_template
from swiftlet.commands.plan_flags import engines_of, setting_of
from swiftlet.config.places import cache_folder
from swiftlet.data.cutting import Schedule, num_steps, num_steps_per_epoch
from swiftlet.data.prepare import Prepared
from swiftlet.data.prepare import prepare as prepare_data
from swiftlet.data.sources import is_here, named_dataset
from swiftlet.data.spec import DatasetSpec, parse_specs
from swiftlet.data.split import num_held_out
from swiftlet.data.survey import largest_micro_batch, sampled_cuts, spread
from swiftlet.errors import DataError, UsageError
from swiftlet.hub import cached_folder
from swiftlet.models.families import Choice, find_model
from swiftlet.models.geometry import Geometry, geometry_of_config, is_exact
from swiftlet.models.safety import CONFIG, read_config
from swiftlet.plan.cards import Card
from swiftlet.plan.strategies import Fed, Job, budgets_for, busy_tokens
from swiftlet.plan.timing import Load

ITEMSIZES = {"bf16": 2, "fp16": 2, "fp32": 4}
NEAR = ": near, not exact: this architecture runs by code of its own, and its layers may keep several times as much"
LOOKED = (
    ", counted in the model without weights: near, not exact, as is what its layers keep with other operators"
)
LABEL_SHARE = 0.6  # of tokens, where the rows were not read


class Sized(NamedTuple):
    """The sizes of a model and where they come from; `folder` is its copy on this machine."""

    name: str
    geometry: Geometry
    source: str
    folder: Path | None


class Rows(NamedTuple):
    """Lengths of the rows that are trained on and held out [tokens], and where they come from."""

    train: np.ndarray
    val: np.ndarray
    label_share: float
    source: str


@dataclass(frozen=True)
class Subject:
    """All that a plan is about; `args` are those of sft, resolved."""

    args: Any
    sized: Sized
    rows: Rows
    card: Card
    world_size: int
    schedule: Schedule
    dtype: str

    @property
    def longest(self) -> int:
        """Return the tokens of the longest row."""
        return int(self.rows.train.max())

    @property
    def busy_tokens(self) -> int:
        """Return the micro-batch that keeps the device busy [tokens]."""
        return busy_tokens(is_host=self.card.is_host, hidden=self.sized.geometry.hidden)

    @property
    def budgets(self) -> list[int]:
        """Return the micro-batch token budgets to compare."""
        asked, is_packed = self.args.train.micro_batch_tokens, self.args.data.packing
        return budgets_for(self.longest, self.busy_tokens, asked, is_packed=is_packed)

    @property
    def budgets_to_propose(self) -> list[int]:
        """Return the budgets that a change may have: these, and smaller ones than one that was asked for."""
        asked = self.args.train.micro_batch_tokens
        if asked is None:
            return self.budgets
        smaller = budgets_for(self.longest, self.busy_tokens, None, is_packed=self.args.data.packing)
        return [*self.budgets, *(budget for budget in smaller if budget < asked)]


def local_copy(choice: Choice, revision: str | None) -> Path | None:
    """Return the folder that a run here would use, without fetching anything; None where it would have to."""
    if choice.folder is not None:
        return choice.folder
    return cached_folder("model", choice.ms_id, choice.hf_id, revision=revision)


def find_sizes(model: Any) -> Sized:
    """Return the sizes of the model that the arguments name.

    Raises:
        SwiftletError: they are not known here, the config.json is damaged, or swift sft refuses such a model.
    """
    choice = find_model(model.model_type, model.model_id_or_path)
    folder = local_copy(choice, model.model_revision)
    if folder is not None and (folder / CONFIG).is_file():
        check_trainable(folder)
        geometry = geometry_in(folder)
        if geometry is not None:
            near = "" if is_exact(read_config(folder)) else LOOKED if geometry.counted else NEAR
            return Sized(choice.name, geometry, f"{folder / CONFIG}{near}", folder)
    if choice.family is not None and choice.family.geometry is not None:
        return Sized(choice.name, choice.family.geometry, "the family table", folder)
    raise UsageError(
        f"the sizes of {choice.name} are not known here: it is in no cache and has no row with sizes",
        "download its config.json into a folder and type --model_id_or_path FOLDER",
    )


def geometry_in(folder: Path) -> Geometry | None:
    """Return the geometry of a model's folder, its parameters counted where the sizes do not say how many there are.

    Raises:
        SwiftletError: the config.json is damaged, or describes no model.
    """
    config = read_config(folder)
    geometry = geometry_of_config(config)
    if geometry is None or is_exact(config):
        return geometry
    # Imports torch, which other plans need not wait for.
    from swiftlet.models.counting import count_parameters

    return geometry._replace(counted=count_parameters(folder) or 0)


def tokenised_rows(data: Prepared) -> Rows:
    """Return the lengths of rows that are tokenised."""
    share = float(data.train.num_labels.sum()) / max(1, int(data.train.lengths.sum()))
    val = data.val.lengths if data.val is not None else np.zeros(0, np.int32)
    return Rows(data.train.lengths, val, share, "the tokenised rows")


def find_rows(args: Any, folder: Path | None, environ: Mapping[str, str]) -> Rows:
    """Return the lengths of the rows: of the rows themselves where they and the tokenizer are here, else statistics.

    Raises:
        DataError: neither the rows nor statistics of them are here, or no row is as short as --max_length.
    """
    specs = parse_specs(args.data.dataset)
    val_specs = parse_specs(args.data.val_dataset)
    max_length = longest_sample(args.data.max_length, folder) if folder else args.data.max_length
    if folder is not None and all(is_here(spec) for spec in (*specs, *val_specs)):
        _, template = open_template(folder, template_type=args.model.template_type, system=args.model.system)
        data = prepare_data(
            args.data, template, max_length=max_length, cache_dir=cache_folder(environ), bad_rows=None
        )
        return tokenised_rows(data)
    lengths = np.concatenate([_statistics(spec, max_length, args) for spec in specs])
    if not len(lengths):
        shortest = min(
            int(named.lengths[2]) for spec in specs if (named := named_dataset(spec)) and named.lengths
        )
        raise DataError(
            f"no row of {', '.join(spec.text for spec in specs)} is as short as --max_length {max_length}: the "
            f"shortest has {shortest} tokens",
            "type --max_length 2048, or --truncation_strategy truncation_left",
        )
    if args.data.val_dataset:
        val = np.concatenate([_statistics(spec, max_length, args) for spec in val_specs])
    else:
        held = num_held_out(len(lengths), args.data.dataset_test_ratio)
        picks = np.linspace(1, max(len(lengths) - 2, 1), held).astype(int) if held else np.zeros(0, int)
        lengths, val = np.delete(lengths, picks), lengths[picks]
    return Rows(lengths, val, LABEL_SHARE, _statistics_source(specs))


def _statistics(spec: DatasetSpec, max_length: int, args: Any) -> np.ndarray:
    named = named_dataset(spec)
    if named is None or named.num_rows is None or named.lengths is None:
        raise DataError(
            f"--dataset {spec.text}: its rows, or the model's tokenizer, are not on this machine, and nothing is "
            "known of its lengths",
            "give a model folder and a data file, or plan with a built-in dataset such as blossom-math-zh",
        )
    number = min(spec.num_samples or named.num_rows, named.num_rows)
    lengths = spread(number, *named.lengths)
    if max_length > 0 and args.data.truncation_strategy == "delete":
        return lengths[lengths <= max_length]
    return np.minimum(lengths, max_length) if max_length > 0 else lengths


def _statistics_source(specs: Sequence[DatasetSpec]) -> str:
    sources = dict.fromkeys(named.source for spec in specs if (named := named_dataset(spec)) is not None)
    return f"published statistics ({'; '.join(sources)}); the rows themselves were not read"


def schedule_of(args: Any, num_rows: int, world_size: int, budget: int = 0) -> Schedule:
    """Return how the rows of a run become steps."""
    train = args.train
    steps_per_epoch = num_steps_per_epoch(
        num_rows,
        batch_size=train.batch_size,
        accumulation=train.gradient_accumulation_steps,
        world_size=world_size,
    )
    step_size = train.batch_size * train.gradient_accumulation_steps * world_size
    total = num_steps(steps_per_epoch, train.num_train_epochs, train.max_steps)
    return Schedule(train.seed, step_size, steps_per_epoch, total, budget, world_size)


def job_of(subject: Subject) -> Job:
    """Return the run as the strategies see it."""
    args, rows, schedule = subject.args, subject.rows, subject.schedule
    setting = setting_of(args, subject.sized.geometry, subject.world_size, ITEMSIZES[subject.dtype])
    keeps_inputs = subject.card.keeps_inputs and args.model.fused_operators != "false"
    setting = replace(setting, longest=subject.longest, keeps_inputs=keeps_inputs)
    if subject.card.is_host:
        setting = replace(setting, is_host=True, keeps_attention=subject.dtype == "fp32")

    if subject.sized.geometry.counted:
        from swiftlet.commands.plan_layers import with_layers_of  # imports torch, as the count did

        setting = with_layers_of(subject, setting)

    @lru_cache(maxsize=32)
    def feed(budget: int) -> Fed:
        cut = schedule._replace(token_budget=budget)
        steps = [
            [Load(tokens, tokens * rows.label_share, squares, samples) for tokens, squares, samples in step]
            for step in sampled_cuts(rows.train, cut)
        ]
        return Fed(largest_micro_batch(rows.train, cut).num_tokens, steps)

    has_dropout = args.tuner.sft_type == "lora" and args.tuner.lora_dropout_p > 0
    return Job(
        subject.sized.geometry,
        setting,
        subject.card,
        schedule.num_steps,
        feed,
        _evaluation(subject),
        has_dropout,
        subject.sized.geometry.up_width > 0 and args.model.fused_operators != "false",
        engines_of(args),
    )


def _evaluation(subject: Subject) -> tuple[list[Load], int]:
    """Return the loads of one evaluation on one rank, and how many evaluations a run makes."""
    args, lengths = subject.args, subject.rows.val
    if args.output.evaluation_strategy == "no" or not len(lengths):
        return [], 0
    per_epoch = args.output.evaluation_strategy == "epoch"
    every = subject.schedule.steps_per_epoch if per_epoch else args.output.eval_steps
    budget = max(int(lengths.max()), subject.budgets[0])  # as of training, see commands/evaluation.py
    tokens = float(lengths.sum()) / subject.world_size
    number = max(1, math.ceil(tokens / budget))
    samples = len(lengths) / subject.world_size / number
    load = Load(tokens / number, tokens / number * subject.rows.label_share, 0.0, samples)
    return [load] * number, math.ceil(subject.schedule.num_steps / every)


def build_subject(args: Any, card: Card, world_size: int, dtype: str) -> Subject:
    """Return what a plan is about; `args` are resolved for `world_size`.

    Raises:
        SwiftletError: the model or the data are not known here.
    """
    sized = find_sizes(args.model)
    rows = find_rows(args, sized.folder, os.environ)
    return Subject(args, sized, rows, card, world_size, schedule_of(args, len(rows.train), world_size), dtype)
