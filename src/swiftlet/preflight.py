"""Before the processes of several nodes start: do all nodes hold the same things, and do they reach each other?

Node 0 listens on MASTER_ADDR:MASTER_PORT, the others come and say what they have: versions, data, the command line.
Then each node tries to reach a port of each other node. All nodes hear the same verdict, so none waits for another that
has given up; a node whose data is bad says so here too. Messages are lines of JSON. No torch.
"""

from __future__ import annotations

import json
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from swiftlet.errors import SwiftletError, UsageError
from swiftlet.log import info
from swiftlet.reach import PROBE_S, RETRY_S, TELL_S, connect

ANSWER_S = 60.0
REPORT_S = 0.5
MOST_BYTES = 2**20
NODE_0 = "node 0"


@dataclass(frozen=True)
class Facts:
    """What a node says of itself: `same` must be equal on all nodes, `shared` counts from node 0 only."""

    node: int
    host: str
    same: dict[str, str] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)
    problem: str = ""
    address: str = ""
    port: int = 0


class Arrival(NamedTuple):
    """Another node that has come to node 0: what it says of itself, and the connection to it."""

    facts: Facts
    line: socket.socket

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"node {self.facts.node} ({self.facts.host})"


@dataclass(frozen=True)
class Verdict:
    """What all nodes hear: what is wrong, and node 0's shared values. `address` is this node's own on the network."""

    mistakes: list[str]
    shared: dict[str, str]
    address: str


def listen(port: int) -> socket.socket:
    """Return node 0's listening socket; opened first, so that other nodes find it while node 0 prepares its data.

    Raises:
        UsageError: the port is taken.
    """
    try:
        return socket.create_server(("", port), backlog=128)
    except OSError as error:
        raise UsageError(
            f"MASTER_PORT={port} of this node cannot be used: {error.strerror}",
            f"type another one on all nodes, such as MASTER_PORT={port + 1}",
        ) from error


def meet(
    facts: Facts,
    *,
    num_nodes: int,
    address: str,
    port: int,
    server: socket.socket | None,
    timeout_s: float,
    check_shared: Callable[[Mapping[str, str]], list[str]] = lambda shared: [],
) -> Verdict:
    """Meet all nodes and return the verdict, the same on each.

    Args:
        server: node 0's socket, None on the others; it is closed here.
        check_shared: what is wrong with node 0's shared values on another node.
        timeout_s: longest wait for nodes that are not there yet.

    Raises:
        SwiftletError: node 0 cannot be reached, or some nodes did not come.
    """
    with ExitStack() as stack, socket.create_server(("", 0), backlog=128) as probe:
        own_port = probe.getsockname()[1]
        if server is not None:
            stack.enter_context(server)
            return _host(facts, own_port, server, num_nodes, timeout_s)
        line = stack.enter_context(connect(NODE_0, address, port, timeout_s))
        own = line.getsockname()[0]
        mine = Facts(**{**vars(facts), "address": own, "port": own_port})
        _send(line, vars(mine), NODE_0)
        peers = _receive(line, timeout_s, NODE_0)
        problems = [*unreached(facts.node, peers["peers"]), *check_shared(peers["shared"])]
        _send(line, {"problems": problems}, NODE_0)
        verdict = _receive(line, timeout_s, NODE_0)
        return Verdict(verdict["mistakes"], verdict["shared"], own)


def report_problem(facts: Facts, address: str, port: int) -> None:
    """Tell node 0, where it listens already, why this node does not come: it would wait for it."""
    until = time.monotonic() + REPORT_S
    while True:
        try:
            with socket.create_connection((address, port), timeout=REPORT_S) as line:
                if line.getsockname() != line.getpeername():
                    line.sendall(json.dumps(vars(facts)).encode() + b"\n")
                    return
        except OSError:  # it has the same mistake, or comes later
            pass
        if time.monotonic() > until:
            return
        time.sleep(REPORT_S / 5)


def _host(facts: Facts, own_port: int, server: socket.socket, num_nodes: int, timeout_s: float) -> Verdict:
    with ExitStack() as stack:
        came = _wait_for_all(server, stack, num_nodes, timeout_s)
        mistakes = find_mistakes([facts, *(one.facts for one in came)])
        came = [one for one in came if not (one.facts.problem and _has_left(one.line))]
        address = came[0].line.getsockname()[0] if came else ""
        places = [(0, address, own_port), *((one.node, one.address, one.port) for one, _ in came)]
        peers = [{"node": node, "address": address, "port": port} for node, address, port in places]
        for one in came:
            with _noted(mistakes):
                _send(one.line, {"peers": peers, "shared": facts.shared}, one.name)
        mistakes += unreached(facts.node, peers)
        for one in came:
            with _noted(mistakes):
                mistakes += _receive(one.line, timeout_s, one.name)["problems"]
        for one in came:
            with _noted(mistakes):
                _send(one.line, {"mistakes": mistakes, "shared": facts.shared}, one.name)
        for one in came:
            one.line.settimeout(ANSWER_S)
            with suppress(OSError):
                one.line.recv(1)  # the other side closes first, so that the port is free at once
    return Verdict(mistakes, facts.shared, address)


def _wait_for_all(server: socket.socket, stack: ExitStack, num_nodes: int, timeout_s: float) -> list[Arrival]:
    """Return the other nodes, once all are there at the same time: one that was ended and started again comes twice."""
    came: list[Arrival] = []
    deadline, told = time.monotonic() + timeout_s, time.monotonic()
    while True:
        numbers = Counter(one.facts.node for one in came)
        for one in came[:]:
            # What is wrong on a node counts after it has left, until the node is there again.
            if _has_left(one.line) and (not one.facts.problem or numbers[one.facts.node] > 1):
                info(f"{one.name} has left; waiting for it to be started again")
                came.remove(one)
        if len(came) == num_nodes - 1:
            return came
        missing = sorted(set(range(1, num_nodes)) - {one.facts.node for one in came})
        if time.monotonic() > deadline:
            raise SwiftletError(
                f"of {num_nodes} nodes, these did not come within {timeout_s:.0f} s: {missing}",
                "start the same command there, with their NODE_RANK; a larger --ddp_timeout waits longer for nodes "
                "that still prepare their data",
            )
        if time.monotonic() - told > TELL_S:
            info(f"waiting for nodes {missing}")
            told = time.monotonic()
        found = _accept(server, stack)
        if found is not None:
            came.append(found)


def _has_left(line: socket.socket) -> bool:
    """Return whether the other side has closed a connection on which it has nothing to say."""
    line.settimeout(0.0)
    try:
        return not line.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True


@contextmanager
def _noted(mistakes: list[str]) -> Iterator[None]:
    """Note a node that breaks off, so that the others hear of it instead of waiting."""
    try:
        yield
    except SwiftletError as error:
        mistakes.append(error.message)


def _accept(server: socket.socket, stack: ExitStack) -> Arrival | None:
    server.settimeout(RETRY_S)
    try:
        line, _ = server.accept()
    except TimeoutError:
        return None
    try:
        found = Facts(**_receive(line, PROBE_S, "a node"))
    except (TypeError, SwiftletError):  # somebody else, such as a port scanner
        line.close()
        return None
    return Arrival(found, stack.enter_context(line))


def unreached(node: int, peers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each other node of which no port can be reached from this one."""
    lines = []
    for peer in peers:
        if peer["node"] == node:
            continue
        try:
            socket.create_connection((peer["address"], peer["port"]), timeout=PROBE_S).close()
        except OSError as error:
            reason = error.strerror or str(error)
            lines.append(
                f"node {node} does not reach node {peer['node']} at {peer['address']}:{peer['port']}: {reason}"
            )
    return lines


def find_mistakes(known: Sequence[Facts]) -> list[str]:
    """Return what is wrong between the nodes: problems of their own, doubled numbers, and what differs."""
    mistakes = [f"node {one.node} ({one.host}): {one.problem}" for one in known if one.problem]
    numbers = [one.node for one in known]
    twice = sorted({number for number in numbers if numbers.count(number) > 1})
    mistakes += [f"NODE_RANK={number} was given to more than one node" for number in twice]
    for name in sorted({name for one in known for name in one.same}):
        values = [one.same.get(name, "none") for one in known if not one.problem]
        if len(set(values)) > 1:
            told = ", ".join(f"{one.same.get(name, 'none')} on node {one.node}" for one in known)
            mistakes.append(f"{name} differs between nodes: {told}")
    return mistakes


def _send(line: socket.socket, content: Mapping[str, Any], who: str) -> None:
    line.settimeout(ANSWER_S)
    try:
        line.sendall(json.dumps(content).encode() + b"\n")
    except OSError as error:
        raise _ended(who) from error


def _ended(who: str) -> SwiftletError:
    return SwiftletError(f"{who} has ended before the start", f"see the log of {who}")


def _receive(line: socket.socket, timeout_s: float, who: str) -> dict[str, Any]:
    """Return the next message of `who`; every half a minute of waiting is said."""
    content, until, told = b"", time.monotonic() + timeout_s, time.monotonic()
    try:
        while not content.endswith(b"\n") and len(content) < MOST_BYTES:
            line.settimeout(max(0.01, min(until - time.monotonic(), told + TELL_S - time.monotonic())))
            try:
                part = line.recv(2**16)
            except TimeoutError:
                now = time.monotonic()
                if now >= until:
                    raise
                info(f"waiting for {who}, which is there and has not answered yet")
                told = now
                continue
            if not part:
                raise ConnectionResetError
            content += part
        found = json.loads(content)
    except TimeoutError as error:
        hint = f"see the log of {who}; a larger --ddp_timeout waits longer"
        raise SwiftletError(f"{who} is there, but said nothing for {timeout_s:.0f} s", hint) from error
    except OSError as error:
        raise _ended(who) from error
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise SwiftletError(f"{who} sent something else than expected", "use one version on all nodes")
    return found
