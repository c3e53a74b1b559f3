"""Which sockets this process and its children listen on, and who can reach them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from turnout._sockets import Socket, can_be_listed, descendants, listening

pytestmark = pytest.mark.skipif(not can_be_listed(), reason="this system does not tell of sockets")

CHILD = """
import socket, sys
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("kind", "family", "type_", "address"),
    [
        ("tcp", socket.AF_INET, socket.SOCK_STREAM, "127.0.0.1"),
        ("tcp", socket.AF_INET, socket.SOCK_STREAM, "0.0.0.0"),
        ("udp", socket.AF_INET, socket.SOCK_DGRAM, "127.0.0.1"),
    ],
)
def test_sockets_of_this_process_are_seen(
    kind: str, family: socket.AddressFamily, type_: socket.SocketKind, address: str
) -> None:
    with socket.socket(family, type_) as server:
        server.bind((address, 0))
        if type_ is socket.SOCK_STREAM:
            server.listen()
        own = Socket(kind, address, server.getsockname()[1])
        assert own in listening()
    assert own not in listening()


def test_sockets_that_wait_for_nobody_are_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            assert [one for one in listening() if one.port == client.getsockname()[1]] == []


def test_sockets_of_children_are_seen() -> None:
    command = [sys.executable, "-c", CHILD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        port = int(child.stdout.readline())
        assert child.pid in descendants(os.getpid())
        assert Socket("tcp", "127.0.0.1", port) in listening()
        child.communicate()
    assert Socket("tcp", "127.0.0.1", port) not in listening()


@pytest.mark.parametrize(
    ("address", "is_local"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("0.0.0.0", False), ("::", False), ("10.0.0.7", False)],
)
def test_loopback_is_local(address: str, is_local: bool) -> None:
    assert Socket("tcp", address, 1).is_local is is_local


def test_how_sockets_are_written() -> None:
    assert str(Socket("tcp", "0.0.0.0", 8786)) == "tcp 0.0.0.0:8786"
    assert str(Socket("udp6", "::", 9)) == "udp [::]:9"
