"""Responses of an artifact server without a network."""

from supply import Power


class Response:
    """HTTP response of an artifact server in two pieces; the power may fail in between."""

    def __init__(self, data: bytes, start: int, power: Power, end: int = 0) -> None:
        end = end or len(data)
        self._rest, self._power = memoryview(data)[start:end], power
        self._piece = len(self._rest) // 2 + 1
        part = len(self._rest) < len(data)
        self.status = 206 if part else 200
        self.headers = {"Content-Length": str(len(self._rest))}
        if part:
            self.headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"

    def read(self, most: int) -> bytes:
        return bytes(self._rest[:most])

    def read1(self, most: int) -> bytes:
        piece = self._rest[: min(most, self._piece)]
        self._power.point(f"downloading, {len(self._rest)} to come")
        self._rest = self._rest[len(piece) :]
        return bytes(piece)

    def close(self) -> None:
        pass
