"""Before the processes of several nodes start: do all nodes hold the same things, and do they reach each other?

Node 0 listens on MASTER_ADDR:MASTER_PORT, the others come and say what they have: versions, data, the command line.
Then each node tries to reach a port of each other node. All nodes hear the same verdict, so none waits for another that
has given up; a node whose data is bad says so here too. Messages are lines of JSON. No torch.
"""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from swiftlet.errors import SwiftletError, UsageError
from swiftlet.log import info
from swiftlet.reach import ANSWER_S, PROBE_S, RETRY_S, TELL_S, connect, receive, send

REPORT_S = 0.5
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
        send(line, vars(mine), NODE_0)
        peers = receive(line, timeout_s, NODE_0)
        problems = [*unreached(facts.node, peers["peers"]), *check_shared(peers["shared"])]
        send(line, {"problems": problems}, NODE_0)
        verdict = receive(line, timeout_s, NODE_0)
        return Verdict(verdict["mistakes"], verdict["shared"], own)


def report_problem(facts: Facts, address: str, port: int) -> None:
    """Tell node 0, where it listens already, why this node does not come: it would wait for it."""
    until = time.monotonic() + REPORT_S
    while True:
        try:
            with socket.create_connection((address, port), timeout=REPORT_S) as line:
                if line.getsockname() != line.getpeername():
                    send(line, vars(facts), NODE_0)
                    return
        except (OSError, SwiftletError):  # it has the same mistake, or comes later
            pass
        if time.monotonic() > until:
            return
        time.sleep(REPORT_S / 5)


def turn_away(facts: Facts, port: int, num_nodes: int) -> None:
    """Tell the nodes that wait for node 0 by now why it does not come; it stays as long as they take to try again."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(listen(port))
        except UsageError:  # another run's; nobody waits here
            return
        came: list[Arrival] = []
        until = time.monotonic() + 2 * RETRY_S
        while len(came) < num_nodes - 1 and time.monotonic() < until:
            found = _accept(server, stack)
            came += [found] if found is not None else []
        came = [one for one in came if not _has_left(one.line)]
        _tell_all(came, facts, [], find_mistakes([facts]), PROBE_S)


def _host(facts: Facts, own_port: int, server: socket.socket, num_nodes: int, timeout_s: float) -> Verdict:
    with ExitStack() as stack:
        came = _wait_for_all(server, stack, num_nodes, timeout_s)
        mistakes = find_mistakes([facts, *(one.facts for one in came)])
        came = [one for one in came if not (one.facts.problem and _has_left(one.line))]
        address = came[0].line.getsockname()[0] if came else ""
        places = [(0, address, own_port), *((one.node, one.address, one.port) for one, _ in came)]
        peers = [{"node": node, "address": address, "port": port} for node, address, port in places]
        _tell_all(came, facts, peers, mistakes, timeout_s)
    return Verdict(mistakes, facts.shared, address)


def _tell_all(
    came: Sequence[Arrival], facts: Facts, peers: list[dict[str, Any]], mistakes: list[str], timeout_s: float
) -> None:
    """Tell the nodes that came where the others are, hear whom they do not reach, and give all the same verdict.

    Args:
        mistakes: those known so far; what turns up here is added.
    """
    for one in came:
        with _noted(mistakes):
            send(one.line, {"peers": peers, "shared": facts.shared}, one.name)
    mistakes += unreached(facts.node, peers)
    for one in came:
        with _noted(mistakes):
            mistakes += receive(one.line, timeout_s, one.name)["problems"]
    for one in came:
        with _noted(mistakes):
            send(one.line, {"mistakes": mistakes, "shared": facts.shared}, one.name)
    for one in came:
        one.line.settimeout(ANSWER_S)
        with suppress(OSError):
            one.line.recv(1)  # the other side closes first, so that the port is free at once


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
        found = Facts(**receive(line, PROBE_S, "a node"))
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
