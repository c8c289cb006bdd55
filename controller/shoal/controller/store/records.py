"""Base of the controller's records: the same structs in use cases, REST API and console.

REST bodies, the OpenAPI document and the console's templates are made from records; each domain
has its own in `records.py`. Times are Unix seconds, UTC (``_at``), 0 for never.
"""

import msgspec


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all records."""


class Page(Record, frozen=True, kw_only=True):
    """Paging of a list: pass `next` as ``cursor``; empty at the end. total: rows on all pages."""

    next: str = ""
    total: int = 0
