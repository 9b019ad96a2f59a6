"""Before the processes of several nodes start: do all nodes hold the same things, and do they reach each other?

Node 0 listens on MASTER_ADDR:MASTER_PORT, the others come and say what they have: versions, data, the command line.
Then each node tries to reach a port of each other node. All nodes hear the same verdict, so none waits for another that
has given up; a node whose data is bad says so here too. Messages are lines of JSON. No torch.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from swiftlet.errors import SwiftletError, UsageError
from swiftlet.log import info
from swiftlet.reach import PROBE_S, RETRY_S, TELL_S, connect

ANSWER_S = 60.0
MOST_BYTES = 2**20


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
        line = stack.enter_context(connect("node 0", address, port, timeout_s))
        own = line.getsockname()[0]
        mine = Facts(**{**vars(facts), "address": own, "port": own_port})
        _send(line, vars(mine))
        peers = _receive(line, timeout_s)
        problems = [*unreached(facts.node, peers["peers"]), *check_shared(peers["shared"])]
        _send(line, {"problems": problems})
        verdict = _receive(line, timeout_s)
        return Verdict(verdict["mistakes"], verdict["shared"], own)


def _host(facts: Facts, own_port: int, server: socket.socket, num_nodes: int, timeout_s: float) -> Verdict:
    lines: dict[int, socket.socket] = {}
    known = [facts]
    with ExitStack() as stack:
        deadline, told = time.monotonic() + timeout_s, time.monotonic()
        while len(known) < num_nodes:
            missing = sorted(set(range(num_nodes)) - {one.node for one in known})
            if time.monotonic() > deadline:
                raise SwiftletError(
                    f"of {num_nodes} nodes, these did not come within {timeout_s:.0f} s: {missing}",
                    "start the same command there, with their NODE_RANK",
                )
            if time.monotonic() - told > TELL_S:
                info(f"waiting for nodes {missing}")
                told = time.monotonic()
            found = _accept(server, stack)
            if found is not None:
                known.append(found[0])
                lines[len(known) - 1] = found[1]
        address = next(iter(lines.values())).getsockname()[0]
        known[0] = Facts(**{**vars(facts), "address": address, "port": own_port})
        peers = [{"node": one.node, "address": one.address, "port": one.port} for one in known]
        mistakes = find_mistakes(known)
        for at, line in lines.items():
            with _noted(known[at], mistakes):
                _send(line, {"peers": peers, "shared": facts.shared})
        mistakes += unreached(facts.node, peers)
        for at, line in lines.items():
            with _noted(known[at], mistakes):
                mistakes += _receive(line, timeout_s)["problems"]
        for at, line in lines.items():
            with _noted(known[at], mistakes):
                _send(line, {"mistakes": mistakes, "shared": facts.shared})
        for line in lines.values():
            line.settimeout(ANSWER_S)
            with suppress(OSError):
                line.recv(1)  # the other side closes first, so that the port is free at once
    return Verdict(mistakes, facts.shared, address)


@contextmanager
def _noted(node: Facts, mistakes: list[str]) -> Iterator[None]:
    """Note a node that breaks off, so that the others hear of it instead of waiting."""
    try:
        yield
    except (OSError, SwiftletError) as error:
        reason = error.message if isinstance(error, SwiftletError) else error.strerror
        mistakes.append(f"node {node.node} ({node.host}): {reason}")


def _accept(server: socket.socket, stack: ExitStack) -> tuple[Facts, socket.socket] | None:
    server.settimeout(RETRY_S)
    try:
        line, _ = server.accept()
    except TimeoutError:
        return None
    try:
        found = Facts(**_receive(line, PROBE_S))
    except (TypeError, SwiftletError):  # somebody else, such as a port scanner
        line.close()
        return None
    return found, stack.enter_context(line)


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


def _send(line: socket.socket, content: Mapping[str, Any]) -> None:
    line.sendall(json.dumps(content).encode() + b"\n")


def _receive(line: socket.socket, timeout_s: float) -> dict[str, Any]:
    line.settimeout(timeout_s)
    content = b""
    try:
        while not content.endswith(b"\n") and len(content) < MOST_BYTES:
            part = line.recv(2**16)
            if not part:
                break
            content += part
        found = json.loads(content)
    except (OSError, ValueError) as error:
        raise SwiftletError(f"another node broke off before the start: {error}", "see its log") from error
    if not isinstance(found, dict):
        raise SwiftletError("another node sent something else than expected", "use one version on all nodes")
    return found
