"""What of each trained parameter the optimizer of this rank holds, and optimizer state by parameter name.

A parameter may be held whole on every rank, or as a range of its elements on each; several ranges may lie in one flat
tensor. Saved state names whole parameters, so it can be taken up by another engine on another number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

NUMBER = "number:"
MASTER = "master"


class Optimizer(Protocol):
    """What an engine needs of an optimizer; torch's have it."""

    param_groups: list[dict[str, Any]]

    @property
    def state(self) -> Any:
        """Return the state of each parameter, by the parameter; one asked for is there."""

    def step(self) -> Any:
        """Update all parameters that have a gradient."""


@dataclass(frozen=True)
class Piece:
    """The elements [start, start + size) of a parameter, flattened, which are [at, at + size) of `held`, flattened.

    Args:
        held: what the optimizer steps.
        is_whole: every rank holds the whole parameter.
        is_master: `held` is finer than the parameter that the forward pass uses, so it is saved as well.
    """

    name: str
    shape: torch.Size
    held: Tensor
    at: int
    start: int
    size: int
    is_whole: bool = False
    is_master: bool = False

    def whole(self, flat: Tensor) -> Tensor:
        """Return the whole tensor of which `flat`, of the shape of `held`, has this rank's piece; all ranks call it."""
        if self.is_whole:
            return flat
        result = torch.zeros(self.shape.numel(), dtype=flat.dtype, device=flat.device)
        result.narrow(0, self.start, self.size).copy_(flat.view(-1).narrow(0, self.at, self.size))
        dist.all_reduce(result)
        return result.view(self.shape)

    def put(self, whole: Tensor, flat: Tensor) -> None:
        """Write this rank's piece of a whole tensor into `flat`, of the shape of `held`."""
        flat.view(-1).narrow(0, self.at, self.size).copy_(
            whole.reshape(-1).narrow(0, self.start, self.size).to(flat)
        )


def whole_piece(name: str, parameter: nn.Parameter) -> Piece:
    """Return a parameter that every rank holds whole."""
    return Piece(name, parameter.shape, parameter, 0, 0, parameter.numel(), is_whole=True)


def state_tensors(optimizer: Optimizer, pieces: Iterable[Piece]) -> Iterator[tuple[str, Tensor]]:
    """Yield (`{key}/{parameter name}`, whole tensor), one at a time; plain numbers as tensors without dimensions.

    Every rank iterates over the same names.
    """
    for piece in pieces:
        if piece.is_master:
            yield f"{MASTER}/{piece.name}", piece.whole(piece.held.detach())
        for key, value in sorted(optimizer.state.get(piece.held, {}).items()):
            if isinstance(value, Tensor):
                is_cut = value.shape == piece.held.shape
                yield f"{key}/{piece.name}", piece.whole(value) if is_cut or piece.is_whole else value.clone()
            elif value is not None:
                yield f"{NUMBER}{key}/{piece.name}", torch.tensor(value)


@torch.no_grad()
def load_state(optimizer: Optimizer, pieces: Sequence[Piece], tensors: Mapping[str, Tensor]) -> None:
    """Set what `state_tensors` gave on any number of ranks; a parameter that `tensors` does not name starts afresh."""
    keys: dict[str, list[str]] = {}
    for name in tensors:
        key, _, parameter_name = name.partition("/")
        keys.setdefault(parameter_name, []).append(key)
    is_step_there = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
    for piece in pieces:
        for key in keys.get(piece.name, []):
            value = tensors[f"{key}/{piece.name}"]
            if key == MASTER:
                if piece.is_master:
                    piece.put(value, piece.held)
                continue
            state = optimizer.state[piece.held]
            if key.startswith(NUMBER):
                state[key.removeprefix(NUMBER)] = value.item()
            elif value.shape == piece.shape and (value.dim() > 0 or key != "step"):
                if key not in state:
                    state[key] = torch.zeros_like(piece.held)
                piece.put(value, state[key])
            else:
                device = piece.held.device if key != "step" or is_step_there else torch.device("cpu")
                state[key] = value.to(device)
