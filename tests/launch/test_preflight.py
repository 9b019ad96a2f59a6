"""Nodes that meet before a run: what they agree on, what they refuse, and how soon."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import ExitStack

import pytest

from swiftlet import preflight, reach
from swiftlet.device.interfaces import check_interfaces, interface_of, interface_variables
from swiftlet.errors import SwiftletError, UsageError
from swiftlet.preflight import Facts, find_mistakes, meet


def meet_all(*facts, timeout_s=20.0, check_shared=lambda shared: []):
    """Let the nodes of `facts` meet, each in a thread; return what each hears, or its error."""
    server = preflight.listen(0)
    port = server.getsockname()[1]
    heard = [None] * len(facts)

    def one(at):
        try:
            heard[at] = meet(
                facts[at],
                num_nodes=len(facts),
                address="127.0.0.1",
                port=port,
                server=server if at == 0 else None,
                timeout_s=timeout_s,
                check_shared=check_shared,
            )
        except SwiftletError as error:
            heard[at] = error

    threads = [threading.Thread(target=one, args=(at,)) for at in range(len(facts))]
    for thread in reversed(threads):
        thread.start()
    for thread in threads:
        thread.join(60)
    return heard, port


def test_nodes_that_hold_the_same_hear_the_same_and_the_port_is_free_again():
    same = {"torch": "2.9", "dataset": "abc"}
    heard, port = meet_all(
        *(Facts(node, f"host{node}", same, {"FOLDER": f"/run{node}"}) for node in range(3))
    )
    assert all(one.mistakes == [] for one in heard)
    assert {one.shared["FOLDER"] for one in heard} == {"/run0"}
    assert {one.address for one in heard} == {"127.0.0.1"}
    with socket.create_server(("", port)):
        pass


def test_what_differs_is_named_on_every_node():
    one = Facts(0, "a", {"torch": "2.9", "dataset": "abc", "transformers": "5"})
    two = Facts(1, "b", {"torch": "2.8", "dataset": "abd"})
    heard, _ = meet_all(one, two)
    assert heard[0].mistakes == heard[1].mistakes
    assert heard[0].mistakes == [
        "dataset differs between nodes: abc on node 0, abd on node 1",
        "torch differs between nodes: 2.9 on node 0, 2.8 on node 1",
        "transformers differs between nodes: 5 on node 0, none on node 1",
    ]


def test_a_node_with_a_problem_of_its_own_is_named_and_nobody_waits():
    started = time.monotonic()
    heard, _ = meet_all(Facts(0, "a"), Facts(1, "b", problem="error: bad.jsonl:3 is not JSON"))
    assert heard[0].mistakes == ["node 1 (b): error: bad.jsonl:3 is not JSON"]
    assert time.monotonic() - started < 10


def test_a_number_given_twice_is_named():
    assert find_mistakes([Facts(0, "a"), Facts(1, "b"), Facts(1, "c")]) == [
        "NODE_RANK=1 was given to more than one node"
    ]


def test_what_node_0_shares_is_checked_on_the_others():
    heard, _ = meet_all(
        Facts(0, "a", shared={"X": "/there"}),
        Facts(1, "b"),
        check_shared=lambda shared: [f"node 1 has no {shared['X']}"],
    )
    assert [one.mistakes for one in heard] == [["node 1 has no /there"]] * 2


def test_nodes_that_do_not_come_are_named():
    server = preflight.listen(0)
    with pytest.raises(SwiftletError, match=r"of 3 nodes, these did not come within 1 s: \[1, 2\]"):
        meet(Facts(0, "a"), num_nodes=3, address="127.0.0.1", port=0, server=server, timeout_s=1)


def test_strangers_at_the_port_are_ignored():
    server = preflight.listen(0)
    address = ("127.0.0.1", server.getsockname()[1])
    with socket.create_connection(address) as one, socket.create_connection(address) as two:
        one.sendall(b"GET / HTTP/1.0\r\n\r\n\n")
        two.sendall(b"[1]\n")
        with pytest.raises(SwiftletError, match="did not come"):
            meet(Facts(0, "a"), num_nodes=2, address="127.0.0.1", port=0, server=server, timeout_s=1)


def test_f50_a_taken_port_is_named_at_once():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            UsageError, match=f"MASTER_PORT={port} of this node cannot be used: Address"
        ) as caught:
            preflight.listen(port)
    assert f"MASTER_PORT={port + 1}" in caught.value.hint


@pytest.mark.parametrize(
    ("address", "reason"),
    [("127.0.0.1", "Connection refused"), ("no-such-host.invalid", "Name or service|resolution")],
)
def test_f50_a_wrong_address_is_named_within_the_limit(address, reason):
    with socket.create_server(("", 0)) as free:
        port = free.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(
        SwiftletError, match=f"MASTER_ADDR={address}, .* cannot be reached: .*({reason})"
    ) as caught:
        meet(Facts(1, "b"), num_nodes=2, address=address, port=port, server=None, timeout_s=1)
    assert time.monotonic() - started < 60
    assert "firewall" in caught.value.hint


def test_a_node_that_cannot_be_reached_from_another_is_named():
    with socket.create_server(("", 0)) as free:
        port = free.getsockname()[1]
    peers = [{"node": 0, "address": "127.0.0.1", "port": port}, {"node": 1, "address": "x", "port": 1}]
    assert preflight.unreached(1, peers) == [
        f"node 1 does not reach node 0 at 127.0.0.1:{port}: Connection refused"
    ]


def come(at, node, host, port=0):
    """Say to node 0 what a node says of itself; return the connection."""
    line = socket.create_connection(("127.0.0.1", at))
    reach.send(line, vars(Facts(node, host, address="127.0.0.1", port=port)), "node 0")
    return line


def test_all_hear_of_a_node_that_breaks_off():
    server, heard = preflight.listen(0), {}
    port = server.getsockname()[1]

    def one(node):
        facts = Facts(node, f"host{node}")
        own = None if node else server
        heard[node] = meet(facts, num_nodes=3, address="127.0.0.1", port=port, server=own, timeout_s=20)

    with socket.create_server(("", 0)) as probe, come(port, 1, "gone", port=probe.getsockname()[1]) as gone:
        threads = [threading.Thread(target=one, args=(node,)) for node in (2, 0)]
        for thread in threads:
            thread.start()
        assert "peers" in reach.receive(gone, 20.0, "node 0")
    for thread in threads:
        thread.join(60)
    assert sorted(heard) == [0, 2]
    for verdict in heard.values():
        assert "node 1 (gone) has ended before the start" in verdict.mistakes


def test_a_node_that_is_ended_and_started_again_is_waited_for(capfd):
    server, heard = preflight.listen(0), []
    port = server.getsockname()[1]
    come(port, 1, "too-early").close()

    def one(node):
        own = None if node else server
        facts = Facts(node, f"host{node}")
        heard.append(meet(facts, num_nodes=2, address="127.0.0.1", port=port, server=own, timeout_s=20))

    threads = [threading.Thread(target=one, args=(node,)) for node in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [verdict.mistakes for verdict in heard] == [[], []]
    assert "node 1 (too-early) has left; waiting for it to be started again" in capfd.readouterr().err


def test_a_node_whose_command_line_is_wrong_says_so_and_leaves():
    server, heard = preflight.listen(0), {}
    port = server.getsockname()[1]
    problem = "no such data file or folder: /data/rows.jsonl"

    def one(node):
        own = None if node else server
        facts = Facts(node, f"host{node}", {"dataset": "abc"})
        heard[node] = meet(facts, num_nodes=3, address="127.0.0.1", port=port, server=own, timeout_s=20)

    preflight.report_problem(Facts(1, "wrong", problem=problem), "127.0.0.1", port)
    threads = [threading.Thread(target=one, args=(node,)) for node in (2, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert heard[0].mistakes == heard[2].mistakes == [f"node 1 (wrong): {problem}"]


def test_a_node_that_comes_again_without_its_mistake_is_taken():
    server = preflight.listen(0)
    port = server.getsockname()[1]
    preflight.report_problem(Facts(1, "wrong", problem="unknown flag --seeed"), "127.0.0.1", port)
    with server, ExitStack() as stack, come(port, 1, "again"), come(port, 2, "other"):
        came = preflight._wait_for_all(server, stack, 3, 20.0)
    assert [one.facts.host for one in came] == ["again", "other"]


def test_a_node_0_that_turns_others_away_does_not_wait_for_those_that_never_come(capfd):
    with socket.create_server(("", 0)) as free:
        port = free.getsockname()[1]
    started = time.monotonic()
    preflight.turn_away(Facts(0, "a", problem="x"), port, 3)
    assert time.monotonic() - started < 5
    with preflight.listen(port):  # free again, and where another run has it this one does not speak
        preflight.turn_away(Facts(0, "a", problem="x"), port, 3)


def test_where_nobody_listens_a_mistake_is_reported_in_vain_and_soon():
    with socket.create_server(("", 0)) as free:
        port = free.getsockname()[1]
    started = time.monotonic()
    preflight.report_problem(Facts(1, "b", problem="x"), "127.0.0.1", port)
    assert time.monotonic() - started < 5


def test_a_node_0_that_ends_while_others_wait_is_named():
    with preflight.listen(0) as server:
        port, found = server.getsockname()[1], []

        def one():
            with pytest.raises(SwiftletError) as caught:
                meet(Facts(1, "b"), num_nodes=2, address="127.0.0.1", port=port, server=None, timeout_s=20)
            found.append(caught.value)

        thread = threading.Thread(target=one)
        thread.start()
        server.accept()[0].close()
        thread.join(60)
    assert str(found[0].message) == "node 0 has ended before the start"
    assert found[0].hint == "see the log of node 0"


def test_a_node_0_that_does_not_answer_is_said_and_given_up(monkeypatch, capfd):
    monkeypatch.setattr(reach, "TELL_S", 0.2)
    with preflight.listen(0) as server:
        port = server.getsockname()[1]
        with pytest.raises(SwiftletError, match="node 0 is there, but said nothing for 1 s") as caught:
            meet(Facts(1, "b"), num_nodes=2, address="127.0.0.1", port=port, server=None, timeout_s=1)
    assert "--ddp_timeout" in caught.value.hint
    assert "waiting for node 0, which is there and has not answered yet" in capfd.readouterr().err


def test_a_peer_that_breaks_off_is_an_error():
    ours, theirs = socket.socketpair()
    theirs.sendall(b'{"mistakes": ')
    theirs.close()
    with ours, pytest.raises(SwiftletError, match="node 1 has ended before the start"):
        reach.receive(ours, 1.0, "node 1")


def test_the_interface_of_an_address_and_the_variables_that_keep_to_it():
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.77") is None
    assert interface_variables("192.0.2.77", {}) == {}
    assert interface_variables("127.0.0.1", {"GLOO_SOCKET_IFNAME": "eth1"}) == {
        "HCCL_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
    }


@pytest.mark.parametrize("value", ["eth", "=eth0", "^lo", "^docker0", "^=eth", "", "ib0,eth0:1"])
def test_an_interface_that_is_there_is_no_mistake(value):
    assert check_interfaces({"HCCL_SOCKET_IFNAME": value}, ["lo", "eth0"]) == []


def test_an_interface_that_is_not_there_is_named():
    for value in ("=eth", "^lo,eth", "ib0"):
        (mistake,) = check_interfaces({"GLOO_SOCKET_IFNAME": value}, ["lo", "eth0"])
        assert mistake.message == f"GLOO_SOCKET_IFNAME={value}, but this node has only lo, eth0"
    assert mistake.hint == "unset GLOO_SOCKET_IFNAME"
