"""Where the hubs are, as the environment says, and whether they can be reached. The clients are not imported."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit

CONNECT_TIMEOUT_S = 5.0
TRUE = {"1", "true", "yes", "on"}
PORTS = {
    "http": 80,
    "https": 443,
    "socks": 1080,
    "socks4": 1080,
    "socks4a": 1080,
    "socks5": 1080,
    "socks5h": 1080,
}


def is_on(name: str) -> bool:
    """Return whether an environment variable is set to yes."""
    return os.environ.get(name, "").strip().lower() in TRUE


def ms_endpoint() -> str | None:
    """Return the address of ModelScope that the environment gives, None where its client knows one itself."""
    given = os.environ.get("MODELSCOPE_ENDPOINT") or os.environ.get("MODELSCOPE_DOMAIN")
    return _with_scheme(given) if given else None


def hf_endpoint() -> str:
    """Return the address of Hugging Face, or of the mirror that the environment gives."""
    return _with_scheme(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")


def unreachable(endpoint: str) -> str | None:
    """Return why a hub, or the proxy in front of it, cannot be reached, in a few seconds at most; None when it can."""
    if is_on("HF_HUB_OFFLINE") or is_on("TRANSFORMERS_OFFLINE"):
        return "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE forbids connections"
    try:
        proxy = _proxy_of(endpoint)
        address = urlsplit(proxy or endpoint)
        host, port = address.hostname or "", address.port or PORTS.get(address.scheme, 80)
    except ValueError as error:  # said without the address: that of a proxy may hold a password
        return f"the address of the hub or of the proxy that the environment sets is none: {error}"
    try:
        socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        name = f"the proxy {host}:{port} that the environment sets" if proxy else host
        return f"{name} cannot be reached ({error.strerror or error})"
    return None


def _proxy_of(endpoint: str) -> str | None:
    """Return the proxy that the clients go through, by the settings that they read."""
    from urllib.request import getproxies, proxy_bypass

    address = urlsplit(endpoint)
    proxies = getproxies()
    proxy = proxies.get(address.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(address.netloc):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _with_scheme(given: str) -> str:
    address = given.strip().rstrip("/")
    return address if "://" in address else f"https://{address}"
