"""Tags of a source that cannot be read: one fault each, and one line of health. Pure."""

from collections.abc import Callable

from shoal.agent.host.faults import Fault

#: Tags that the line of health names.
NAMED = 3


class TagFaults:
    """Reports a tag when it fails, and again only after it was read or for another cause.

    source   name of the source
    total    number of its tags
    """

    def __init__(self, source: str, total: int, report: Callable[[Fault], None]) -> None:
        self._source, self._total, self._report = source, total, report
        self._why: dict[str, str] = {}

    def failed(self, tag: str, where: str, why: str) -> None:
        """A tag could not be read. where: its address, as in agent.toml."""
        if self._why.get(tag) != why:
            self._why[tag] = why
            self._report(Fault("bad-tag", f"{self._source}: {tag} ({where}): {why}"))

    def worked(self, tag: str) -> None:
        """A tag was read."""
        if self._why:
            self._why.pop(tag, None)

    @property
    def summary(self) -> str:
        """Which tags cannot be read, and why; "" when all can.

        >>> faults = TagFaults("plc", 9, lambda fault: None)
        >>> faults.failed("t", "holding 7", "there is no such address")
        >>> faults.summary
        '1 of 9 tags cannot be read: t: there is no such address'
        """
        if not self._why:
            return ""
        named = [f"{tag}: {why}" for tag, why in list(self._why.items())[:NAMED]]
        more = len(self._why) - len(named)
        listed = "; ".join(named) + (f"; and {more} more" if more else "")
        return f"{len(self._why)} of {self._total} tags cannot be read: {listed}"
