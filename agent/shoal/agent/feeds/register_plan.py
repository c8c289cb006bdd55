"""Which Modbus registers to read together, learned from what the device refuses. Pure.

Adjacent tags share a request. When a device refuses a request as such (an illegal address, a length
beyond its own limit), the tags that it refuses, or the places where two of its ranges may not be
read together, are found by halving, and left out or kept apart; both are tried again, ever more
rarely, so that a refusal that passes costs nothing for long. Any other failure changes nothing.
Source: MODBUS Application Protocol 1.1b3: at most 125 registers, or 2 000 bits, in one response.
"""

import enum
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from shoal.agent.feeds.registers import Table, Tag
from shoal.agent.feeds.retries import Retries

#: Most registers, and bits, in one request; longest gap of unused registers inside one.
REGISTERS, BITS, GAP = 125, 2_000, 8
#: Seconds until what was refused is tried again: the first, doubled up to the longest.
FIRST_S, LONGEST_S = 10.0, 3_600.0


class Failure(enum.Enum):
    """REFUSED: the device will not serve this address or length; PASSING: not now."""

    REFUSED = enum.auto()
    PASSING = enum.auto()


class Block(NamedTuple):
    """Adjacent tags read by one request. length: registers, or bits."""

    table: Table
    address: int
    length: int
    tags: tuple[Tag, ...]

    def part(self, tag: Tag, response: Sequence[int]) -> Sequence[int]:
        """A tag's registers, or its bit, of the response to this block."""
        at = tag.address - self.address
        return response[at : at + tag.size]


#: Registers or bits of a block.
Request = Callable[[Block], Sequence[int] | Failure]


class Plan:
    """The blocks that read all tags, adapted to what the device refuses.

    tags   with names of their own
    """

    def __init__(self, tags: Iterable[Tag]) -> None:
        self._tags = sorted(tags, key=lambda tag: (tag.table, tag.address, tag.size))
        self._refused = Retries(FIRST_S, LONGEST_S)  # by tag
        self._apart = Retries(FIRST_S, LONGEST_S)  # by the first tag of the second block
        self._blocks: list[Block] = []
        self._changes_s = -math.inf

    def blocks(self, now_s: float) -> list[Block]:
        """Requests of this poll; refused tags are in none until they are due again."""
        if now_s >= self._changes_s:
            refused, apart = self._refused.waiting(now_s), self._apart.waiting(now_s)
            self._blocks = blocks(self._tags, refused, apart)
            self._changes_s = min(self._refused.next_s(now_s), self._apart.next_s(now_s))
        return self._blocks

    def read(
        self, block: Block, request: Request, now_s: float
    ) -> list[tuple[Block, Sequence[int]]]:
        """Read a block, in parts if it is refused; parts without a response are left out."""
        found: list[tuple[Block, Sequence[int]]] = []
        self._read(block, request, now_s, found)
        return found

    @property
    def refused(self) -> frozenset[str]:
        """Names of tags that the device refused when they were last read."""
        return frozenset(self._refused)

    def _read(
        self, block: Block, request: Request, now_s: float,
        found: list[tuple[Block, Sequence[int]]],
    ) -> bool:  # fmt: skip
        """Whether the block was read as one."""
        response = request(block)
        if response is Failure.PASSING:
            return False
        if not isinstance(response, Failure):
            found.append((block, response))
            self._accept(block)
            return True
        if len(block.tags) == 1:
            self._pause(self._refused, block.tags[0].name, now_s)
            return False
        halves = self._halves(block)
        each = [self._read(half, request, now_s, found) for half in halves]
        if all(each):  # so nothing in them is refused, but reading them together
            self._pause(self._apart, halves[1].tags[0].name, now_s)
        return False

    def _halves(self, block: Block) -> list[Block]:
        """Two parts: at a place where it had to be kept apart before, else in the middle."""
        tags = block.tags
        known = [at for at in range(1, len(tags)) if tags[at].name in self._apart]
        at = known[0] if known else len(tags) // 2
        return [_block(tags[:at]), _block(tags[at:])]

    def _accept(self, block: Block) -> None:
        """What was refused before, and is served now, is forgotten."""
        if not (self._refused or self._apart):
            return
        for at, tag in enumerate(block.tags):
            if self._refused.worked(tag.name) or (at and self._apart.worked(tag.name)):
                self._changes_s = -math.inf

    def _pause(self, retries: Retries, name: str, now_s: float) -> None:
        retries.failed(name, now_s)
        self._changes_s = -math.inf


def blocks(
    tags: Sequence[Tag], refused: Iterable[str] = (), apart: Iterable[str] = ()
) -> list[Block]:
    """Requests that read all tags: few, with gaps of at most GAP and the protocol's limits.

    tags      in the order of table, address and size
    refused   names of tags that no request may reach
    apart     names of tags with which a request has to begin
    """
    refused, apart = set(refused), set(apart)
    found: list[Block] = []
    may_extend = False
    for tag in tags:
        if tag.name in refused:
            may_extend = False
            continue
        joined = _extended(found[-1], tag) if may_extend and tag.name not in apart else None
        if joined is None:
            found.append(_block((tag,)))
        else:
            found[-1] = joined
        may_extend = True
    return found


def _block(tags: Sequence[Tag]) -> Block:
    first = tags[0]
    end = max(tag.address + tag.size for tag in tags)
    return Block(first.table, first.address, end - first.address, tuple(tags))


def _extended(block: Block, tag: Tag) -> Block | None:
    """The block with one tag more; None when one request cannot read both."""
    end = block.address + block.length
    count = max(end, tag.address + tag.size) - block.address
    limit, gap = (BITS, BITS) if tag.is_bit else (REGISTERS, GAP)
    if tag.table != block.table or tag.address - end > gap or count > limit:
        return None
    return Block(block.table, block.address, count, (*block.tags, tag))
