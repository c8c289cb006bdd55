"""Base of the controller's records: the same structs in use cases, REST API and console.

REST bodies, the OpenAPI document and the console's templates are made from records; each domain
has its own in `records.py`. Times are Unix seconds, UTC (``_at``), 0 for never.
"""

from collections.abc import Mapping
from typing import Any, Self

import msgspec


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all records."""

    @classmethod
    def of_row(cls, row: Any, **more: Any) -> Self:
        """Record of a database row: its columns that have a field's name, and `more`."""
        return cls.of_fields(row._mapping, **more)

    @classmethod
    def of_fields(cls, values: Mapping[str, Any], **more: Any) -> Self:
        """Record of those of the values that have a field's name, and `more`."""
        fields = cls.__struct_fields__
        return cls(**{k: v for k, v in values.items() if k in fields} | more)


class Page(Record, frozen=True, kw_only=True):
    """Paging of a list: pass `next` as ``cursor``; empty at the end. total: rows on all pages."""

    next: str = ""
    total: int = 0
