"""One function over many items in several processes: results in the order of the items, a bounded number in flight.

A process holds one item at a time and is given the next only when it has handed back its result, so neither side can
wait for the other with a full pipe. Processes are forked where that is safe (no other Python thread runs) and spawned
otherwise. They leave when told, when their pipe closes or when their parent is gone, and ignore Ctrl-C and its
like: the parent ends them. Nothing of torch is used in them.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple, TypeVar

from swiftlet.errors import SwiftletError
from swiftlet.stopping import STOP_SIGNALS

Item = TypeVar("Item")
Result = TypeVar("Result")
WAITING_PER_PROCESS = 4
GLANCE_S = 1.0
LEAVE_S = 5.0


class _Worker(NamedTuple):
    process: Any
    connection: Connection


def map_in_order(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    num_proc: int,
    on_wait: Callable[[], None] | None = None,
) -> Generator[Result, None, None]:
    """Yield function(item) for each item, in order; `num_proc` 1 stays in this process.

    Args:
        function: what `multiprocessing` can send to a spawned process.
        on_wait: called at least every `GLANCE_S` while results are awaited.

    Raises:
        SwiftletError: a process died.
    """
    if num_proc == 1:
        for item in items:
            yield function(item)
        return
    workers: list[_Worker] = []
    # the collector of cycles would write into every page that forked processes share with this one
    gc.freeze()
    try:
        for _ in range(num_proc):
            workers.append(_start(function))
        yield from _run(workers, iter(items), on_wait)
    finally:
        _stop(workers)
        gc.unfreeze()


def _run(workers: list[_Worker], items: Iterator[Any], on_wait: Callable[[], None] | None) -> Iterator[Any]:
    idle = list(workers)
    busy: dict[Any, tuple[_Worker, int]] = {}
    done: dict[int, Any] = {}
    num_sent = num_given = 0
    upcoming = next(items, None)
    while upcoming is not None or busy or done:
        while idle and upcoming is not None and len(done) < WAITING_PER_PROCESS * len(workers):
            worker = idle.pop()
            _send(worker, upcoming)
            busy[worker.connection] = (worker, num_sent)
            num_sent += 1
            upcoming = next(items, None)
        for connection in wait(list(busy), timeout=GLANCE_S):
            worker, number = busy.pop(connection)
            done[number] = _receive(worker)
            idle.append(worker)
        if on_wait:
            on_wait()
        while num_given in done:
            yield done.pop(num_given)
            num_given += 1


def _start(function: Callable[[Any], Any]) -> _Worker:
    context: Any = multiprocessing.get_context("fork" if threading.active_count() == 1 else "spawn")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_serve, args=(function, theirs, os.getpid()), daemon=True, name="tokenise"
    )
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _serve(function: Callable[[Any], Any], connection: Connection, parent: int) -> None:
    for number in STOP_SIGNALS:  # a whole group of processes may hear them; the parent ends this one
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            while not connection.poll(GLANCE_S):
                if os.getppid() != parent:
                    return
            item = connection.recv()
            if item is None:
                return
            connection.send(function(item))


def _send(worker: _Worker, item: Any) -> None:
    try:
        worker.connection.send(item)
    except ConnectionError as error:
        raise _death(worker) from error


def _receive(worker: _Worker) -> Any:
    try:
        return worker.connection.recv()
    except (EOFError, ConnectionError) as error:
        raise _death(worker) from error


def _death(worker: _Worker) -> SwiftletError:
    worker.process.join(LEAVE_S)
    code = worker.process.exitcode
    how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
    return SwiftletError(
        f"a process that tokenises died ({how})",
        "signal 9 is mostly a lack of memory: give fewer processes with --preprocess_num_proc 1; "
        "otherwise its traceback is above",
    )


def _stop(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.process.terminate()
    deadline = time.monotonic() + LEAVE_S
    for worker in workers:
        worker.process.join(max(0.0, deadline - time.monotonic()))
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        worker.connection.close()
