"""Where the hubs are by the environment, and what is said of hubs and proxies that cannot be reached."""

import pytest

from swiftlet.hub.connection import hf_endpoint, ms_endpoint, unreachable

NAMES = "HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY HF_HUB_OFFLINE TRANSFORMERS_OFFLINE".split()
ENDPOINTS = ["MODELSCOPE_ENDPOINT", "MODELSCOPE_DOMAIN", "HF_ENDPOINT"]
CLOSED = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    for name in (*NAMES, *(name.lower() for name in NAMES), *ENDPOINTS):
        monkeypatch.delenv(name, raising=False)


def test_the_endpoints_follow_the_clients_variables(monkeypatch):
    assert ms_endpoint() is None and hf_endpoint() == "https://huggingface.co"
    monkeypatch.setenv("MODELSCOPE_DOMAIN", "hub.example.com")
    assert ms_endpoint() == "https://hub.example.com"
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:80/")
    assert ms_endpoint() == "http://127.0.0.1:80"
    monkeypatch.setenv("HF_ENDPOINT", "mirror.example.com/")
    assert hf_endpoint() == "https://mirror.example.com"


def test_the_hub_itself_is_tried_where_no_proxy_is_in_between(monkeypatch):
    assert unreachable(CLOSED) == "127.0.0.1 cannot be reached (Connection refused)"
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:8")  # not for http
    assert unreachable(CLOSED) == "127.0.0.1 cannot be reached (Connection refused)"
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:8")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert unreachable(CLOSED) == "127.0.0.1 cannot be reached (Connection refused)"


@pytest.mark.parametrize(
    "proxy", ["http://me:secret@127.0.0.1:9", "me:secret@127.0.0.1:9", "socks5h://127.0.0.1:9"]
)
@pytest.mark.parametrize("name", ["https_proxy", "HTTPS_PROXY", "all_proxy"])
def test_a_proxy_that_does_not_answer_is_named_without_its_password(name, proxy, monkeypatch):
    monkeypatch.setenv(name, proxy)
    expected = "the proxy 127.0.0.1:9 that the environment sets cannot be reached (Connection refused)"
    assert unreachable("https://hub.invalid") == expected


def test_the_usual_port_is_tried_where_none_is_given(monkeypatch):
    tried = []

    def connect(address, timeout):
        tried.append(address)
        raise OSError("no")

    monkeypatch.setattr("socket.create_connection", connect)
    for endpoint in ("https://a", "http://b", "http://c:8080"):
        assert (
            unreachable(endpoint)
            == f"{endpoint[-1] if '8080' not in endpoint else 'c'} cannot be reached (no)"
        )
    monkeypatch.setenv("ALL_PROXY", "socks5://d")
    assert "the proxy d:1080" in str(unreachable("https://a"))
    assert tried == [("a", 443), ("b", 80), ("c", 8080), ("d", 1080)]


@pytest.mark.parametrize("endpoint", ["http://[127.0.0.1:80", "http://a:port"])
def test_what_is_no_address_is_said_so(endpoint):
    assert "the address of the hub or of the proxy that the environment sets is none" in str(
        unreachable(endpoint)
    )
