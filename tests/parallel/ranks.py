"""Run a function in several gloo processes, forked from the warm server, and return what each gave."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import server


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def _enter(
    function: Callable[..., Any], rank: int, world_size: int, port: int, out: str, arguments: tuple
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    import torch

    from swiftlet.parallel.world import close_world, init_world

    torch.set_num_threads(1)
    world = init_world("gloo", torch.device("cpu"), timeout_s=60, always=True)
    result = function(world, *arguments)
    close_world(world)
    Path(out).write_text(json.dumps(result))


def on_ranks(function: Callable[..., Any], world_size: int, *arguments: Any) -> list[Any]:
    """Return function(world, *arguments) of each rank, as JSON values."""
    context, port = server(), free_port()
    with tempfile.TemporaryDirectory() as folder:
        outs = [f"{folder}/{rank}.json" for rank in range(world_size)]
        processes = [
            context.Process(target=_enter, args=(function, rank, world_size, port, outs[rank], arguments))
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
        codes = [process.exitcode for process in processes]
        for process in processes:
            process.kill()
        assert codes == [0] * world_size, codes
        return [json.loads(Path(out).read_text()) for out in outs]
