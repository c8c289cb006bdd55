"""A saved contribution on its way up: piece by piece, read from the disk as it goes."""

from collections.abc import Callable, Sequence

from shoal.agent.installed.round_record import Saved
from shoal.federated.chunks import Chunk, chunk_of

#: Bytes of a piece; seconds between two, so that inference's own messages find their way.
PIECE, PAUSE_S = 256 << 10, 0.05
#: Messages that the broker may owe an acknowledgement for when a piece is sent: a slow line is not
#: filled with what would only wait in memory.
AHEAD = 16


class Sending:
    """One contribution.

    read   start, length -> that part of it
    room   whether the line has room for a piece
    say    hands a piece to the broker; whether it went
    """

    def __init__(
        self,
        saved: Saved,
        read: Callable[[int, int], bytes],
        room: Callable[[], bool],
        say: Callable[[Chunk], bool],
    ) -> None:
        self.saved, self._read, self._room, self._say = saved, read, room, say
        self._total = max(1, -(-saved.length // PIECE))
        self._waiting: list[int] = []

    @property
    def waits(self) -> bool:
        """Whether there are pieces to send."""
        return bool(self._waiting)

    def ask(self, missing: Sequence[int] = ()) -> None:
        """Send these pieces (none named: all), unless it is about to anyhow."""
        wanted = [i for i in missing if i < self._total] or list(range(self._total))
        self._waiting += [i for i in sorted(set(wanted)) if i not in self._waiting]

    def some(self) -> bool:
        """Send one piece, whether it went: it waits on when there is no connection, or no room."""
        if not self._waiting or not self._room():
            return False
        index = self._waiting[0]
        data = self._read(index * PIECE, PIECE)
        chunk = chunk_of(self.saved.digest, index, self._total, self.saved.length, data)
        went = self._say(chunk)
        if went:
            self._waiting.pop(0)
        return went
