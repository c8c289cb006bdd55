"""Heads of requests that were parsed before: a client says the same one again and again.

What the parser makes of a head depends on its bytes alone. So a read that is one whole request and
whose head is known byte for byte need not be parsed again; anything else goes to the parser.
"""

from typing import NamedTuple

#: Longest read that is looked at, longest head that is kept, and how many are kept at once.
READ, HEAD, KEPT = 64 << 10, 1 << 10, 256
_END = b"\r\n\r\n"


class Head(NamedTuple):
    """What the head of a POST says, after which the connection is kept.

    path        without its query
    length      of the body, as Content-Length says
    json_bytes  Inference-Header-Content-Length, -1 without it
    """

    path: str
    length: int
    json_bytes: int


class Heads:
    """Known heads, of all connections. Bounded: when there are too many, it begins anew."""

    def __init__(self) -> None:
        self._known: dict[bytes, Head] = {}

    def read(self, data: memoryview) -> tuple[Head, bytes] | None:
        """Head and body of `data` where that is one whole request with a known head."""
        if len(data) > READ:
            return None
        whole = bytes(data)
        end = whole.find(_END) + len(_END)
        head = self._known.get(whole[:end])
        if head is None or len(whole) != end + head.length:
            return None
        return head, whole[end:]

    def learn(self, data: memoryview, head: Head) -> None:
        """Remember the head with which `data` begins, if `data` is that one request."""
        end = bytes(data[:HEAD]).find(_END) + len(_END)
        if end < len(_END) or len(data) != end + head.length:
            return
        if len(self._known) >= KEPT:
            self._known.clear()
        self._known[bytes(data[:end])] = head
