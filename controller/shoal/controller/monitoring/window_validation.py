"""Window validation: a window report against the references of its release."""

import functools
import math
from collections import defaultdict
from collections.abc import Iterable

import msgspec
from sqlalchemy import Connection, select

from shoal import manifest
from shoal.controller.monitoring import histograms
from shoal.controller.store.tables import release
from shoal.errors import AbsentError, SettingError, SketchError, WireError
from shoal.sketch import Latency, Reference, References
from shoal.wire import WindowReport

#: Longest window: a year of windows that an offline device merged.
LONGEST_S = 366 * 86_400


@functools.lru_cache(maxsize=64)
def parse_references(data: bytes) -> References:
    """Decode a release's references; cached, because every window of the release needs them."""
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


class WindowValidator:
    """Validates the windows of one batch, with one database query per release.

    Checks, in this order: the release exists and is of the window's model; the sketches were made
    with the release's own references; counts and lengths are possible; health values are finite;
    the sketches, if there are any, are intact and hold no more rows than the window.
    """

    def __init__(self, db: Connection) -> None:
        self._db = db
        self._references: dict[str, References] = {}
        self._rows: dict[tuple[str, bytes], int] = {}

    def read_ahead(self, reports: Iterable[WindowReport]) -> None:
        """Read the sketches of these windows together, which `check` then need not read."""
        known: dict[str, Reference] = {}
        sketches: dict[str, list[bytes]] = defaultdict(list)
        for report in reports:
            try:
                references = self._references_of(report.release)
            except AbsentError:
                continue
            both = (references.inputs, report.inputs), (references.outputs, report.outputs)
            for reference, data in both:
                known[reference.id] = reference
                sketches[reference.id].append(data)
        for name, given in sketches.items():
            for data, rows in zip(given, histograms.rows_of_all(known[name], given), strict=True):
                if rows is not None:
                    self._rows[name, data] = rows

    def _references_of(self, release: str) -> References:
        if release not in self._references:
            self._references[release] = references_of(self._db, release)
        return self._references[release]

    def check(self, report: WindowReport) -> None:
        """Raise AbsentError, WireError or SketchError with the rule that is violated."""
        references = self._references_of(report.release)
        if report.release.partition("@")[0] != report.model:
            raise WireError(f"window of {report.model!r:.80} names release {report.release!r:.80}")
        if report.reference != references.id:
            raise SketchError(
                f"window of {report.release} is sketched by reference {report.reference[:32]}, "
                f"the release's own is {references.id}"
            )
        if report.correct > report.labelled:
            raise WireError(f"window with {report.correct} correct of {report.labelled} labelled")
        if len(report.latency) > Latency.BINS or not report.window_s <= LONGEST_S:
            raise WireError(f"window of {report.window_s:g} s, {len(report.latency)} latency bins")
        _check_health(report)
        self._check_sketches(report, references)

    def _check_sketches(self, report: WindowReport, references: References) -> None:
        if not report.inputs and not report.outputs:
            return  # a device may have looked at none of its rows
        inputs = self._rows_of(references.inputs, report.inputs)
        outputs = self._rows_of(references.outputs, report.outputs)
        if max(inputs, outputs) > report.rows:
            raise SketchError(
                f"sketches of {inputs} and {outputs} rows in a window of {report.rows}"
            )

    def _rows_of(self, reference: Reference, data: bytes) -> int:
        found = self._rows.get((reference.id, data))
        return histograms.read(reference, data).rows if found is None else found


def _check_health(report: WindowReport) -> None:
    values = msgspec.structs.astuple(report.health)
    if not all(math.isfinite(value) for value in values if isinstance(value, float | int)):
        raise WireError("window with a health value that is not finite")
