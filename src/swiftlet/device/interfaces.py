"""The network interfaces of a node, and the variables that tell each library of collectives which one to use."""

from __future__ import annotations

import fcntl
import socket
import struct
from collections.abc import Mapping, Sequence

from swiftlet.errors import UsageError

VARIABLES = ("GLOO_SOCKET_IFNAME", "HCCL_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
SIOCGIFADDR = 0x8915


def interface_of(address: str) -> str | None:
    """Return the name of the interface that has this IPv4 address, None when none has."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(probe, SIOCGIFADDR, request)
            except OSError:  # it has no address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None


def chosen_interfaces(value: str, names: Sequence[str]) -> list[str]:
    """Return the interfaces that the value of a variable chooses among `names`.

    It is a list of prefixes, each possibly with a port behind a colon; `=` before the list asks for the very names, `^`
    for all but these, `^=` for all but the very names. Source: the libraries' documents.
    """
    is_exact, is_excluding = value.lstrip("^").startswith("="), value.startswith("^")
    wanted = [part.partition(":")[0] for part in value.lstrip("^=").split(",") if part]

    def is_named(name: str) -> bool:
        return name in wanted if is_exact else name.startswith(tuple(wanted))

    return [name for name in names if is_named(name) != is_excluding]


def check_interfaces(environ: Mapping[str, str], names: Sequence[str]) -> list[UsageError]:
    """Return a mistake for each variable that chooses no interface of `names`."""
    mistakes = []
    for variable in VARIABLES:
        value = environ.get(variable, "")
        if value and not chosen_interfaces(value, names):
            mistakes.append(
                UsageError(
                    f"{variable}={value}, but this node has only {', '.join(names)}", f"unset {variable}"
                )
            )
    return mistakes


def interface_variables(address: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that keep collectives on the interface of this address; what the user has set stays."""
    name = interface_of(address)
    return {variable: name for variable in VARIABLES if name and not environ.get(variable)}
