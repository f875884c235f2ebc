"""Messages between a process and its decoding worker: JSON over a socket, and the handle of shared memory."""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

_LENGTH = struct.Struct("!I")


def send(link: socket.socket, message: dict[str, Any], memory: int | None = None) -> None:
    """Send a message, and the handle of shared memory with it."""
    data = json.dumps(message).encode()
    socket.send_fds(link, [_LENGTH.pack(len(data))], [] if memory is None else [memory])
    link.sendall(data)


def receive(link: socket.socket) -> dict[str, Any]:
    """The next message with its "memory" handle, if any; empty where the other side is gone."""
    head, handles, _, _ = socket.recv_fds(link, _LENGTH.size, 1)
    head += _exactly(link, _LENGTH.size - len(head)) if head else b""
    data = _exactly(link, _LENGTH.unpack(head)[0]) if len(head) == _LENGTH.size else b""
    message: dict[str, Any] = json.loads(data) if data else {}
    return {**message, "memory": handles[0]} if message and handles else message


def _exactly(link: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = link.recv(size - len(data))
        if not piece:
            return b""
        data += piece
    return data
