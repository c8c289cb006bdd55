"""Columns of a table, masked as a policy says, batch by batch, before anything is stored."""

import hmac
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from shoal.controller.data import csv_files, masking_policy
from shoal.controller.data.csv_files import FormatError
from shoal.controller.data.masking_policy import (
    AnyRule,
    Bucket,
    Drop,
    Generalise,
    Hash,
    Keep,
    MaskingPolicy,
    Shift,
)
from shoal.controller.data.records import MaskedColumn, Masking
from shoal.errors import DatasetError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

#: Finds or makes a key of the controller by its name: 32 secret bytes.
KeyOf = Callable[[str], bytes]
#: Distinct values that are counted to find the most frequent.
MAX_COUNTED = 1_000_000
#: Hex digits of a keyed hash: 128 bits, so two of 5 million values meet with 1 in 10^25.
DIGITS = 32
_WHOLE = re.compile(r"([+-]?\d+)\.0")
_HINT = "correct the policy (docs/privacy.md), or the table"


class Masker:
    """A policy at work on one table. Values are masked by what they are as text without the spaces
    around them; a whole number is the same with and without ".0".

    columns   names that are stored, in order
    texts     columns, as the file spells them, that are to be read as text
    counted   columns whose values have to be counted first: `count`, all of them, then `mask`
    """

    def __init__(self, policy: MaskingPolicy, keys: KeyOf) -> None:
        self.policy = policy
        self._keys = {name: keys(name) for name in sorted(_keys_of(policy))}
        self._rules: dict[str, AnyRule] = {}
        self._counts: dict[str, Counter[str]] = {}
        self._top: dict[str, frozenset[str]] = {}
        self._missing: Counter[str] = Counter()
        self._decimal = "."
        self._header: list[str] = []
        self.columns: list[str] = []
        self.texts: list[str] = []

    @property
    def counted(self) -> list[str]:
        return [n for n, rule in self._rules.items() if isinstance(rule, Generalise) and rule.top]

    def begin(self, header: Sequence[str], decimal: str = ".") -> None:
        """Check the policy against a table's columns; DatasetError, which quotes nothing of it.

        decimal   mark of its numbers that are text; "" where no value shows it
        """
        names = [name.strip() for name in header]
        rules = self.policy.columns
        if len(set(names)) < len(names):
            raise DatasetError("two columns of the table have one name", "rename one")
        subjects = {rule.subject for rule in rules.values() if isinstance(rule, Shift)}
        wanted = {name for name, rule in rules.items() if not rule.optional} | subjects
        if absent := sorted(wanted - {*names}):
            raise DatasetError(
                f"the masking policy has a rule for {_listed(absent)}, and none of the table's "
                f"{csv_files.counted(len(names), 'column')} has that name",
                f"{_HINT}; a column that not every table has: optional = true",
            )
        self._rules = {name: self._rule(name) for name in names}
        self._decimal, self._header = decimal, [*header]
        self.columns = [n for n in names if not isinstance(self._rules[n], Drop)]
        self.texts = [
            raw for raw, name in zip(header, names, strict=True)
            if name in subjects or not isinstance(self._rules[name], Drop | Keep)
        ]  # fmt: skip
        self._missing.clear()

    def is_masked(self, name: str) -> bool:
        """Whether a column that is stored has other values than the table's."""
        return not isinstance(self._rules.get(name.strip(), Keep()), Keep)

    def as_spelled(self, types: Mapping[str, str]) -> dict[str, str]:
        """Types of columns by their names as the file spells them."""
        return {raw: types[raw.strip()] for raw in self._header if raw.strip() in types}

    def restart(self) -> None:
        """Before the rows are read once more."""
        self._missing.clear()

    def count(self, frame: "pd.DataFrame") -> None:
        """Count the values of `counted`; DatasetError for too many different ones."""
        named = {str(raw).strip(): raw for raw in frame.columns}
        for name in self.counted:
            counts = self._counts.setdefault(name, Counter())
            counts.update(as_texts(frame[named[name]]).dropna().to_list())
            if len(counts) > MAX_COUNTED:
                raise DatasetError(
                    f"column {name!r} has more than {MAX_COUNTED} different values",
                    'hash it, or leave it out: rule = "hash", or "drop"',
                )

    def mask(self, frame: "pd.DataFrame") -> "pd.DataFrame":
        """Rows with the columns that are stored, masked; names without spaces around them."""
        import pandas as pd

        raw = {str(column).strip(): frame[column] for column in frame.columns}
        made = {name: self._masked(name, raw) for name in self.columns}
        return pd.DataFrame(made, index=frame.index)

    def mask_table(self, table: "pa.Table") -> "pa.Table":
        """The same of a part of a Parquet file."""
        import pyarrow as pa

        raw = {name: _series_of(table.column(name)) for name in self.texts}
        arrays: list[Any] = []
        for name in self.columns:
            if not self.is_masked(name):
                arrays.append(table.column(name))
                continue
            values = self._masked(name, raw)
            kind = pa.float64() if values.dtype == np.float64 else pa.string()
            arrays.append(pa.Array.from_pandas(values, type=kind))
        return pa.table(arrays, names=self.columns)

    def outcome(self) -> Masking:
        """What was done."""
        columns = [
            MaskedColumn(
                name=name, rule=masking_policy.kind_of(rule), how=masking_policy.described(rule),
                missing=self._missing[name], key=self.key_id(rule),
            )
            for name, rule in self._rules.items()
            if not (isinstance(rule, Keep) and name not in self.policy.columns)
        ]  # fmt: skip
        return Masking(policy=masking_policy.to_toml(self.policy), columns=columns)

    def hashed(self, name: str, value: str) -> str:
        """What a value of a column that is hashed is stored as."""
        rule = self.policy.columns[name]
        assert isinstance(rule, Hash)
        return _digest(self._keys[rule.key], canonical(value))

    def key_id(self, rule: AnyRule) -> str:
        """The first digits of what its key is known by; "" for a rule without one."""
        if not isinstance(rule, Hash | Shift):
            return ""
        return hmac.digest(self._keys[rule.key], b"id", "sha256").hex()[:8]

    def _rule(self, name: str) -> AnyRule:
        default: AnyRule = Drop() if self.policy.others == "drop" else Keep()
        return self.policy.columns.get(name, default)

    def _masked(self, name: str, raw: Mapping[str, "pd.Series"]) -> "pd.Series":
        rule, values = self._rules[name], raw.get(name)
        assert values is not None
        if isinstance(rule, Keep):
            return values
        texts = as_texts(values)
        match rule:
            case Hash():
                key = self._keys[rule.key]
                made = _of_distinct(texts, lambda text: _digest(key, text))
            case Generalise():
                made = _of_distinct(texts, lambda text: self._category(name, rule, text))
            case Bucket():
                made = _of_distinct(texts, lambda text: self._bucket(name, rule, text))
            case Shift():
                made = self._shifted(rule, texts, as_texts(raw[rule.subject]))
            case _:
                raise AssertionError(rule)
        self._missing[name] += int(made.isna().sum() - values.isna().sum())
        numbers = isinstance(rule, Bucket) or (isinstance(rule, Generalise) and _is_number(rule))
        return made.astype(np.float64) if numbers else made.astype("str")

    def _category(self, name: str, rule: Generalise, text: str) -> str | float | None:
        if rule.prefix:
            return text[: rule.prefix]
        if rule.top:
            kept = text in self._most_frequent(name)
            return text if kept else ("other" if rule.other is None else str(rule.other))
        return rule.map.get(text, rule.other)

    def _most_frequent(self, name: str) -> frozenset[str]:
        """Values of a counted column that are kept; determined once, when all are counted."""
        if name not in self._top:
            rule, counts = self._rules[name], self._counts.get(name, Counter())
            assert isinstance(rule, Generalise)
            ordered = sorted(counts.items(), key=lambda one: (-one[1], one[0]))
            kept = (text for text, n in ordered[: rule.top] if n >= rule.at_least)
            self._top[name] = frozenset(kept)
        return self._top[name]

    def _bucket(self, name: str, rule: Bucket, text: str) -> float | None:
        if not self._decimal and "," in text:
            raise FormatError(
                f"column {name!r} has a number that may be a fraction, or a thousand and more",
                "say which mark is the decimal one: --decimal , or --decimal .",
            )
        number = csv_files.number_of(text, self._decimal or ".")
        if number is None:
            return None
        if rule.edges:
            at = int(np.searchsorted(rule.edges, number, side="right")) - 1
            return rule.edges[max(at, 0)]
        return round(float(np.floor(number / rule.width)) * rule.width, 12)

    def _shifted(self, rule: Shift, texts: "pd.Series", subjects: "pd.Series") -> "pd.Series":
        import pandas as pd

        key = self._keys[rule.key]
        offsets = _of_distinct(subjects, lambda subject: _offset(key, subject, rule.days))
        parsed = _of_distinct(texts, lambda text: _parse_date(text, rule.format))
        moved = [
            _moved(when, offset, text, rule.format)
            for when, offset, text in zip(parsed, offsets, texts, strict=True)
        ]
        return pd.Series(moved, index=texts.index, dtype=object)


def as_texts(values: "pd.Series") -> "pd.Series":
    """Values as canonical text, shape (n,); missing stays missing."""
    return _of_distinct(values, canonical)


def canonical(value: object) -> str:
    """A value as text.

    >>> canonical(" 17.0 "), canonical(17), canonical(1.5), canonical("a b ")
    ('17', '17', '1.5', 'a b')
    """
    text = value.isoformat() if isinstance(value, date) else str(value).strip()
    whole = _WHOLE.fullmatch(text)
    return whole[1] if whole else text


def _of_distinct(values: "pd.Series", make: Callable[[Any], Any]) -> "pd.Series":
    """make(value) for each, computed once for each different value; missing stays missing."""
    import pandas as pd

    codes, distinct = pd.factorize(values)
    made = np.empty(len(distinct) + 1, object)
    for i, value in enumerate(distinct):
        made[i] = make(value)
    made[-1] = None  # of code -1
    found: npt.NDArray[np.object_] = made[codes]
    return pd.Series(found, index=values.index, dtype=object)


def _keys_of(policy: MaskingPolicy) -> set[str]:
    return {rule.key for rule in policy.columns.values() if isinstance(rule, Hash | Shift)}


def _digest(key: bytes, text: str) -> str:
    data = b"hash\0" + text.encode("utf-8", "surrogatepass")
    return hmac.digest(key, data, "sha256").hex()[:DIGITS]


def _offset(key: bytes, subject: str, days: int) -> int:
    """-days to days, without 0."""
    data = b"shift\0" + subject.encode("utf-8", "surrogatepass")
    drawn = int.from_bytes(hmac.digest(key, data, "sha256")) % (2 * days)
    return drawn - days if drawn < days else drawn - days + 1


def _parse_date(text: str, form: str) -> date | None:
    try:
        if form:
            return datetime.strptime(text, form)  # noqa: DTZ007  a zone is kept where it has one
        try:
            return date.fromisoformat(text)
        except ValueError:
            return datetime.fromisoformat(text)
    except ValueError:
        return None


def _moved(when: date | None, offset: int | None, text: str, form: str) -> str | None:
    if when is None or offset is None:
        return None
    try:
        moved = when + timedelta(days=offset)
    except OverflowError:
        return None
    if form:
        return moved.strftime(form)
    return moved.isoformat(text[10]) if isinstance(moved, datetime) else moved.isoformat()


def _series_of(column: "pa.ChunkedArray") -> "pd.Series":
    """Whole numbers as text: pandas would round them where some are missing."""
    import pyarrow as pa

    return (column.cast(pa.string()) if pa.types.is_integer(column.type) else column).to_pandas()


def _is_number(rule: Generalise) -> bool:
    """Whether its categories are numbers."""
    values = [*rule.map.values(), *([] if rule.other is None else [rule.other])]
    return bool(rule.map) and not any(isinstance(value, str) for value in values)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
