"""Text that was read in the wrong encoding, or that spells one name in several ways."""

from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np

from shoal.controller.data.records import Column, TableFinding
from shoal.controller.data.stored_tables import StoredTable

#: UTF-8 that was read as Latin-1 or cp1252; U+FFFD is for bytes that could not be read.
MISREAD = "\u00c3[\u0080-\u00bf\u0152-\u2122]|\u00e2\u20ac|\u00c2[\u00a0-\u00bf]|\ufffd"
#: Distinct values up to which spellings are compared.
_NAMES = 10_000


def text_findings(
    table: StoredTable, column: Column, make: Callable[..., TableFinding]
) -> Iterator[TableFinding]:
    """Findings about a column of text; of names (label, site, split) their spelling too."""
    import pyarrow.compute as pc

    name = column.name
    masks = [
        pc.fill_null(pc.match_substring_regex(part, MISREAD), False).to_numpy(zero_copy_only=False)
        for part in table.parts(name)
    ]
    misread = np.concatenate(masks)
    if misread.any():
        what = "text in another encoding than it was read with"
        yield make("encoding", [name], misread, what, "say it: --encoding cp1252, or utf-8")
    if column.role in ("label", "site", "split"):
        yield from _spellings(table, column, make)


def _spellings(
    table: StoredTable, column: Column, make: Callable[..., TableFinding]
) -> Iterator[TableFinding]:
    values = table[column.name]
    counts = values.value_counts()
    if len(counts) > _NAMES:
        return
    alike: dict[str, list[str]] = defaultdict(list)
    for value in counts.index:  # the most frequent first
        alike[" ".join(str(value).split()).casefold()].append(str(value))
    for spellings in alike.values():
        if len(spellings) > 1:
            others = values.isin(spellings[1:]).to_numpy(bool)
            listed = ", ".join(map(repr, spellings[1:4]))
            what = f"{listed} beside {spellings[0]!r}: one name, or several?"
            yield make("spelling", [column.name], others, what, "spell them alike")
