"""Is this window what it says it is? Checked against the release's references."""

import functools
import math
from typing import Any

import msgspec
from sqlalchemy import Connection, select

from shoal import manifest
from shoal.controller.monitoring import histograms
from shoal.controller.store.tables import release
from shoal.errors import AbsentError, SettingError, SketchError, WireError
from shoal.sketch import Latency, References
from shoal.wire import WindowReport

#: Longest span that a window may claim: a year of one device that was alone.
LONGEST_S = 366 * 86_400
_DEEP, _MANY, _LONG = 6, 200, 2_000


@functools.lru_cache(maxsize=64)
def parse_references(data: bytes) -> References:
    """References of a release's bytes; kept, for every window of the release needs them."""
    return msgspec.json.decode(data, type=References)


def references_of(db: Connection, ref: str) -> References:
    """References of "model@version"; AbsentError if there is no such release."""
    try:
        model, version = manifest.parse_release(ref)
    except SettingError as error:
        raise AbsentError("release", ref[:80]) from error
    mine = (release.c.model == model) & (release.c.version == version)
    data = db.scalar(select(release.c.references).where(mine))
    if data is None:
        raise AbsentError("release", ref, "was the database restored from a backup?")
    return parse_references(bytes(data))


class Intake:
    """Checks the windows of one batch; asks the database once a release."""

    def __init__(self, db: Connection) -> None:
        self._db = db
        self._known: dict[str, References] = {}

    def check(self, report: WindowReport) -> None:
        """Raise WireError, SketchError or AbsentError, naming what is wrong with the window."""
        references = self._references(report.release)
        if report.release.partition("@")[0] != report.model:
            raise WireError(f"window of {report.model!r:.80} says release {report.release!r:.80}")
        if report.reference != references.id:
            raise SketchError(
                f"window of {report.release} is sketched by reference {report.reference[:32]}, "
                f"the release's own is {references.id}"
            )
        if report.correct > report.labelled:
            raise WireError(f"window with {report.correct} of {report.labelled} labels right")
        if len(report.latency) > Latency.BINS or not report.window_s <= LONGEST_S:
            raise WireError(f"window of {report.window_s:g} s, {len(report.latency)} latency bins")
        _check_health(report)
        _check_sketches(report, references)

    def _references(self, ref: str) -> References:
        if ref not in self._known:
            self._known[ref] = references_of(self._db, ref)
        return self._known[ref]


def _check_health(report: WindowReport) -> None:
    values = msgspec.structs.astuple(report.health)
    if not all(math.isfinite(value) for value in values if isinstance(value, float | int)):
        raise WireError("window whose health holds a number that is none")


def _check_sketches(report: WindowReport, references: References) -> None:
    if report.rows == 0 and not report.inputs and not report.outputs:
        return
    seen = histograms.read(references.inputs, report.inputs).rows
    said = histograms.read(references.outputs, report.outputs).rows
    if max(seen, said) > report.rows:
        raise SketchError(f"sketches of {seen} and {said} rows in a window of {report.rows}")


def plain(value: Any, depth: int = 0) -> Any:
    """Facts as JSON can hold them: bounded, and a number that is none becomes text.

    >>> plain({"p99": float("inf"), "raw": b"x", "ok": [1, None]})
    {'p99': 'inf', 'raw': "b'x'", 'ok': [1, None]}
    """
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return value[:_LONG]
    if depth < _DEEP and isinstance(value, dict):
        return {str(k)[:80]: plain(v, depth + 1) for k, v in list(value.items())[:_MANY]}
    if depth < _DEEP and isinstance(value, (list, tuple)):
        return [plain(v, depth + 1) for v in value[:_MANY]]
    return str(value)[:80]
