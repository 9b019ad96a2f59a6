"""What saves a run: the weights, and beside them the files that make a folder of weights a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch

from swiftlet import __version__, log
from swiftlet.commands.merge_proof import BASE_FILE
from swiftlet.commands.sft import Setup
from swiftlet.commands.side_files import base_file, side_files
from swiftlet.config.check_engines import is_sharded
from swiftlet.config.filenames import ARGS_FILE
from swiftlet.errors import SwiftletError
from swiftlet.files import files_like
from swiftlet.models.causal import CausalLM
from swiftlet.models.save import COPIED, tensors_to_save, to_save, write_gathered, write_model
from swiftlet.parallel.engine import Engine
from swiftlet.train.checkpoint import Saver
from swiftlet.train.manifest import Identity
from swiftlet.train.resume import saved_steps
from swiftlet.train.state import TrainState
from swiftlet.train.statefile import copied

SMALLEST_SHARD = 64 * 2**20


@dataclass(frozen=True)
class Content:
    """What a checkpoint holds beside the state of the training.

    Args:
        files: those that are the same in every checkpoint of a run, name -> text.
        copied: names of the files that the base model's folder held when the run began, copied by every save.
        num_bytes: size of the weights.
    """

    setup: Setup
    model: CausalLM
    engine: Engine
    files: Mapping[str, str]
    copied: Sequence[str]
    num_bytes: int

    @property
    def is_adapter(self) -> bool:
        """Whether an adapter is saved, not a whole model."""
        return self.setup.args.tuner.sft_type != "full"

    @property
    def is_streamed(self) -> bool:
        """Whether no rank may hold all that is saved."""
        return is_sharded(self.setup.args) and not self.is_adapter

    @property
    def source(self) -> Path:
        """The base model's folder, which every save reads."""
        return self.setup.ready.source.folder

    @cached_property
    def _of_base(self) -> str:
        return base_file(self.source)

    def take(self, folder: Path) -> Callable[[], None]:
        """Copy what the next step changes, or write it at once where it is streamed; return what writes the rest."""
        world, whole = self.setup.world, self.engine.model_tensors(is_trained=self.is_adapter)
        if self.is_streamed and whole is not None:
            shard_bytes = max(SMALLEST_SHARD, self.num_bytes // world.world_size)
            with self._reading_base():
                write_gathered(self.model.model, folder, self.source, whole, world.is_main, shard_bytes)
            return partial(self._write_files, folder)
        if whole is None:
            is_adapter = self.is_adapter
            whole = tensors_to_save(self.model.model, is_adapter=is_adapter) if world.is_main else iter(())
        taken = copied(whole)  # on every rank, as gathering takes all of them
        if not world.is_main:
            return lambda: None
        # by now: what is written beside the next step must not ask the model for its state
        return partial(
            self._write, folder, dict(to_save(self.model.model, taken, is_adapter=self.is_adapter))
        )

    def _write(self, folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
        is_adapter = self.is_adapter
        with self._reading_base():
            write_model(
                self.model.model, folder, source=self.source, is_adapter=is_adapter, tensors=tensors.items()
            )
        self._write_files(folder)

    def _write_files(self, folder: Path) -> None:
        for name, content in self.files.items():
            (folder / name).write_text(content, encoding="utf-8")
        with self._reading_base():
            if self.is_adapter:
                (folder / BASE_FILE).write_text(self._of_base, encoding="utf-8")
            gone = [name for name in self.copied if not (folder / name).is_file()]
            if gone:
                raise SwiftletError(f"{self.source / gone[0]} is gone")

    @contextmanager
    def _reading_base(self) -> Iterator[None]:
        """Say what mends a save that could not read the base model's folder, which was fine when the run began."""
        try:
            yield
        except SwiftletError as error:
            hint = f"put back the base model's folder {self.source}, from which each save copies"
            raise SwiftletError(error.message, hint) from error


def build_saver(
    setup: Setup,
    model: CausalLM,
    engine: Engine,
    state: TrainState,
    identity: Identity,
    args_file: str,
    *,
    num_bytes: int,
    fill_folder: Callable[[], None],
) -> Saver | None:
    """Return what saves the run, None where it keeps no weights.

    Args:
        args_file: the text of a checkpoint's ARGS_FILE.
        num_bytes: size of the weights.
        fill_folder: see `Saver`.
    """
    args, ready, _, world = setup
    output = args.output
    if output.save_strategy == "no":
        if world.is_main:
            log.warning("--save_strategy no: this run keeps no weights")
        return None
    files, copied = {ARGS_FILE: args_file, **side_files(setup)}, files_like(ready.source.folder, COPIED)
    content = Content(setup, model, engine, files, copied, num_bytes)
    return Saver(
        ready.folder,
        world,
        engine,
        content.take,
        identity,
        __version__,
        total_limit=output.save_total_limit,
        is_model_only=output.save_only_model,
        is_error_fatal=output.on_save_error == "stop",
        is_streamed=content.is_streamed,
        fill_folder=fill_folder,
        most_lost=output.save_steps if output.save_strategy == "steps" else state.steps_per_epoch,
        expected_bytes=num_bytes,
        saved_steps=saved_steps(ready.folder, state.global_step) if ready.checkpoint is not None else [],
        newest_step=state.global_step,
    )
