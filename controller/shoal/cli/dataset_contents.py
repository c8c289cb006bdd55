"""What a dataset holds, in words and tables."""

from collections.abc import Iterator
from typing import Any

from shoal.cli.render import Columns, JsonObject, card, plain, table

_KINDS = {"images": "images", "audio": "sounds", "tensors": "items of tensors"}
#: Classes and names that a line lists.
_SHOWN = 12
#: Warnings of a cleaning report that are shown when a table is added.
_WARNED = 8


def added(made: JsonObject) -> Iterator[str]:
    """Lines about a version that was registered."""
    ref = plain(f"{made['name']}@{made['version']}")
    yield from _content_lines(made, ref)
    if made["same_as"] == ref:
        yield "  nothing was added: it holds the same, with the same roles, as what was sent"
    elif made["same_as"]:
        yield f"  holds the same as {plain(made['same_as'])}, which has another name or other roles"


def _content_lines(made: JsonObject, ref: str) -> Iterator[str]:
    contents = made["contents"]
    if contents is None:
        label = f", label {made['label']}" if made["label"] else ", no label"
        yield f"{ref}: {made['rows']} rows{plain(label)}, sha256 {made['sha256'][:16]}…"
        if made["csv"]:
            yield f"  read with {csv_format(made['csv'])}"
        for one in (made["masking"] or {"columns": []})["columns"]:
            missing = f", {one['missing']} values missing since" if one["missing"] else ""
            yield plain(f"  masked: {one['name']}: {one['how']}{missing}")
        yield from (f"  {line}" for line in _left_out(made["left_out"], "rows"))
        if made["duplicates"]:
            yield f"  used, though the same as a row before: {made['duplicates']} rows"
        return
    yield f"{ref}: {made['rows']} {_KINDS[made['kind']]}{_labelled(made)}"
    yield from (f"  {line}" for line in _lines(contents))


def _labelled(made: JsonObject) -> str:
    contents = made["contents"]
    count, source = len(contents["classes"]), plain(made["label"])
    if contents["label_kind"] == "classes":
        return f" in {count} classes by {source}: {_counts(contents['classes'])}"
    if contents["label_kind"] == "boxes":
        return f" with boxes of {count} classes by {source}: {_counts(contents['classes'])}"
    if contents["label_kind"] == "numbers":
        return f" labelled with numbers by {source}: {contents['low']:g} to {contents['high']:g}"
    return ", no labels"


def _lines(contents: JsonObject) -> Iterator[str]:
    for one in contents["inputs"]:
        yield f"{plain(one['name'])}: {one['datatype']} {plain(shape_of(one))}"
    for name, word in (("formats", "formats"), ("rates", "samples a second")):
        if contents[name]:
            yield f"{word}: {_counts(contents[name])}"
    for note in contents["notes"]:
        yield f"note: {plain(note)}"
    yield from _left_out(contents["left_out"])


def _left_out(found: list[JsonObject], what: str = "") -> Iterator[str]:
    for one in found:
        more = ", …" if one["count"] > len(one["names"][:3]) else ""
        names = plain(", ".join(one["names"][:3]))
        reason = plain(f"{what}: {one['reason']}" if what else one["reason"])
        yield f"left out: {one['count']} {reason}" + (f": {names}{more}" if names else "")


def csv_format(csv: JsonObject | None) -> str:
    """How a CSV file is read.

    >>> csv_format({"separator": ";", "decimal": ",", "thousands": ".", "encoding": "cp1252",
    ...     "skip": 3})
    'separator ";", decimal ",", thousands ".", encoding cp1252, 3 lines skipped'
    """
    if csv is None:
        return ""
    separator = "tab" if csv["separator"] == "\t" else f'"{csv["separator"]}"'
    words = [f"separator {separator}", f'decimal "{csv["decimal"]}"']
    if csv["thousands"]:
        words.append(f'thousands "{csv["thousands"]}"')
    words.append(f"encoding {csv['encoding']}")
    if csv["skip"]:
        words.append(f"{csv['skip']} lines skipped")
    return plain(", ".join(words))


def shape_of(summary: JsonObject) -> str:
    """Shape of an input, with the least and most of an axis: "[16-480, 640, 3]".

    >>> shape_of({"low": [16, 3], "high": [480, 3]})
    '[16-480, 3]'
    """
    axes = zip(summary["low"], summary["high"], strict=True)
    return f"[{', '.join(str(a) if a == b else f'{a}-{b}' for a, b in axes)}]"


def _counts(counts: dict[str, int]) -> str:
    shown = [f"{name} {count}" for name, count in list(counts.items())[:_SHOWN]]
    more = f" and {len(counts) - _SHOWN} more" if len(counts) > _SHOWN else ""
    return plain(", ".join(shown) + more)


def tables(contents: JsonObject) -> list[Any]:
    """What `dataset show` prints of the contents."""
    about: Columns = {
        "labels": "label_kind",
        "classes": lambda c: _counts(c["classes"]),
        "lowest label": "low",
        "highest label": "high",
        "formats": lambda c: _counts(c["formats"]),
        "samples a second": lambda c: _counts(c["rates"]),
        "parts": lambda c: _counts(c["parts"]),
        "groups": lambda c: plain(c["groups"] or ""),
        "notes": lambda c: plain("; ".join(c["notes"])),
    }
    inputs: Columns = {
        "input": "name",
        "datatype": "datatype",
        "shape": lambda one: plain(shape_of(one)),
    }
    return [
        card(contents, about), "", table(contents["inputs"], inputs, empty="no input"), "",
        left_out(contents["left_out"], "files"),
    ]  # fmt: skip


def report(found: JsonObject) -> list[Any]:
    """A cleaning report."""
    columns: Columns = {
        "check": lambda f: plain(f"warning: {f['check']}" if f["warns"] else f["check"]),
        "columns": lambda f: plain(", ".join(f["columns"])),
        "rows": "count",
        "such as row": lambda f: plain(", ".join(map(str, f["rows"]))),
        "what": "what",
        "what to do": "hint",
    }
    clean = f"nothing found in {found['rows']} rows; looked for: {', '.join(found['checks'])}"
    more = [f"and {found['more']} more"] if found["more"] else []
    return [table(found["findings"], columns, empty=plain(clean)), *more]


def masked(masking: JsonObject | None) -> list[Any]:
    """What `dataset show` prints of what was done to columns before a table was stored."""
    columns: Columns = {
        "column": "name",
        "masked by": "rule",
        "how": "how",
        "key": "key",
        "missing since": lambda one: plain(one["missing"] or ""),
    }
    return [table(masking["columns"], columns, empty=""), ""] if masking else []


def warnings(found: JsonObject, ref: str) -> Iterator[str]:
    """What a cleaning report warns of, as lines after a table was added."""
    some = [one for one in found["findings"] if one["warns"]]
    for one in some[:_WARNED]:
        hint = f"; {one['hint']}" if one["hint"] else ""
        yield plain(f"  warning: {one['what']} ({one['count']} rows){hint}")
    if len(some) > _WARNED:
        yield plain(f"  and {len(some) - _WARNED} more: shoal dataset report {ref}")


def diff(found: JsonObject) -> list[Any]:
    """What changed from one table to another."""
    one, other, changed = found["before"], found["after"], found["table"]
    about: Columns = {
        "from": lambda t: plain(f"{one}, {t['rows_before']} rows"),
        "to": lambda t: plain(f"{other}, {t['rows_after']} rows"),
        "rows added": lambda t: plain(_rows_of(t["rows_added"], t["added"])),
        "rows removed": lambda t: plain(_rows_of(t["rows_removed"], t["removed"])),
        "rows the same": lambda t: str(t["rows_same"]),
    }
    columns: Columns = {
        "column": "column",
        "what": "what",
        "before": lambda c: plain(c["before"] or "not there"),
        "after": lambda c: plain(c["after"] or "not there"),
    }
    shifts: Columns = {
        "column that differs": "column",
        "distance": lambda s: f"{s['distance']:.3f}",
        "before": "before",
        "after": "after",
        "missing": lambda s: f"{s['missing_before']:.2g} % to {s['missing_after']:.2g} %",
    }
    differ = [shift for shift in changed["shifts"] if shift["differs"]]
    return [
        card(changed, about), "",
        table(changed["columns"], columns, empty="the same columns, types and roles"), "",
        table(differ, shifts, empty=f"none of {len(changed['shifts'])} columns differs"),
    ]  # fmt: skip


def _rows_of(count: int, rows: list[int]) -> str:
    return f"{count}" + (f", such as row {', '.join(map(str, rows))}" if rows else "")


def left_out(found: list[JsonObject], what: str) -> Any:
    """What `dataset show` prints of the files or rows that are not in a dataset."""
    columns: Columns = {
        "left out": "reason",
        what: "count",
        "such as": lambda one: plain(", ".join(one["names"])),
    }
    return table(found, columns, empty="nothing was left out")


def forgotten(found: JsonObject) -> Iterator[str]:
    """What was done about a subject's rows, and what they went into."""
    rows = ", ".join(f"{count} of {ref}" for ref, count in found["rows"].items())
    yield plain(f"rows of the subject: {rows}; these versions are erased")
    if found["made"]:
        yield plain(f"without them: {found['made']}")
    elif found["why"]:
        yield plain(f"no version without them was made: {found['why']}")
    names = {
        "runs": "runs trained on them", "releases": "releases trained on them",
        "devices": "devices that serve these releases", "tasks": "federated tasks",
        "policies": "models that retrain from an erased version",
        "derived": "datasets made from them, to be searched too", "unknown": "not searched",
    }  # fmt: skip
    for field, what in names.items():
        if some := found[field]:
            more = f" and {len(some) - _SHOWN} more: --json lists all" if some[_SHOWN:] else ""
            yield plain(f"{what} ({len(some)}): {', '.join(some[:_SHOWN])}{more}")
    if found["releases"]:
        models = dict.fromkeys(ref.partition("@")[0] for ref in found["releases"])
        for model in [*models][:_SHOWN] if found["made"] else []:
            yield plain(f"next: shoal model train {model} --dataset {found['made']}")
