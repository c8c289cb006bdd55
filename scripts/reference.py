"""Generate the reference parts of docs/ from the code: `make docs`; `--check` only compares.

A document has one or more such parts, between `<!-- reference: NAME -->` and `<!-- /reference -->`.
Everything outside of them is written by hand.
"""

import importlib
import importlib.metadata
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import msgspec

DOCS = Path(__file__).parents[1] / "docs"
_PLACE = re.compile(r"(<!-- reference: ([a-z-]+) -->\n).*?(<!-- /reference -->)", re.DOTALL)
_FIELD = re.compile(r"^( *)([a-z][a-z0-9_]*(?:, [a-z][a-z0-9_]*)*)(?: {2,})(\S.*)$")


def main() -> int:
    """Write or compare every document; return the number of stale ones in a check."""
    stale = []
    for path in sorted(DOCS.glob("*.md")):
        text = path.read_text()
        fresh = _PLACE.sub(lambda m: m[1] + "\n" + REFERENCES[m[2]]().strip() + "\n\n" + m[3], text)
        if fresh != text:
            stale.append(path.name)
            if "--check" not in sys.argv:
                path.write_text(fresh)
    if stale:
        print(
            ", ".join(stale), "not current: run make docs" if "--check" in sys.argv else "written"
        )
    return len(stale) if "--check" in sys.argv else 0


# ------------------------------------------------------------------------------- command lines


def command_line(module: str, attribute: str, name: str) -> str:
    """Every command of a click application, each with its own --help."""
    root = getattr(importlib.import_module(module), attribute)
    parts = []
    for path, command in _walk(root, (name,)):
        if isinstance(command, click.Group):
            continue
        context = click.Context(command, info_name=" ".join(path), terminal_width=88)
        text = command.get_help(context)
        parts.append(f"### {' '.join(path)}\n\n```text\n{text.rstrip()}\n```\n")
    return "\n".join(parts)


def _walk(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, command
    if isinstance(command, click.Group):
        for name, child in sorted(command.commands.items()):
            yield from _walk(child, (*path, name))


def exit_codes() -> str:
    from shoal.cli.exit_codes import MEANING

    rows = [f"| {code} | {text} |" for code, text in MEANING.items()]
    return "\n".join(["| code | meaning |", "|---|---|", *rows])


# ------------------------------------------------------------------------------------- settings


def settings(module: str, root: str) -> str:
    """Every setting of a TOML file, a table a section, from its structs' docstrings."""
    kind = getattr(importlib.import_module(module), root)
    parts = [_section("", kind)] if any(not _is_struct(f.type) for f in _fields(kind)) else []
    inner = [f for f in _fields(kind) if _is_struct(f.type)]
    return "\n".join([*parts, *(_section(f.name, _struct_of(f.type)) for f in inner)])


def _section(name: str, kind: type) -> str:
    meanings = described(kind)
    first = (inspect.getdoc(kind) or "").partition("\n")[0]
    head = f"### [{name}]" if name else "### at the top of the file"
    rows = [
        f"| `{field.name}` | {_default(field)} | {meanings.get(field.name, '')} |"
        for field in _fields(kind)
        if not _is_struct(field.type)
    ]
    return "\n".join(
        [head, "", first, "", "| setting | default | meaning |", "|---|---|---|", *rows, ""]
    )


def described(kind: type) -> dict[str, str]:
    """Field -> its description in the struct's docstring."""
    return _described(inspect.getdoc(kind) or "", kind)


def _described(text: str, kind: type) -> dict[str, str]:
    found: dict[str, str] = {}
    names: list[str] = []
    for line in text.splitlines()[1:]:
        known = _FIELD.match(line)
        if known and all(n in kind.__struct_fields__ for n in known[2].split(", ")):
            names = known[2].split(", ")
            found |= dict.fromkeys(names, known[3].strip())
        elif names and line.startswith("    ") and line.strip():
            for name in names:
                found[name] += " " + line.strip()
        else:
            names = []
    return found


def _fields(kind: type) -> tuple[msgspec.structs.FieldInfo, ...]:
    return msgspec.structs.fields(kind)


def _is_struct(kind: Any) -> bool:
    return _struct_of(kind) is not None


def _struct_of(kind: Any) -> Any:
    """The struct in `kind` or in `kind | None`."""
    options = [kind, *getattr(kind, "__args__", ())]
    return next((k for k in options if isinstance(k, type) and issubclass(k, msgspec.Struct)), None)


def _default(field: msgspec.structs.FieldInfo) -> str:
    value: Any = field.default
    if value is msgspec.NODEFAULT and field.default_factory is not msgspec.NODEFAULT:
        value = field.default_factory()
    if value is msgspec.NODEFAULT:
        return "must be given"
    return f"`{msgspec.json.encode(value).decode()}`"


def feeds(group: str, table: str) -> str:
    """Every setting of every plugin of ours in an entry point group, a table a plugin."""
    found = sorted(importlib.metadata.entry_points(group=group), key=lambda entry: entry.name)
    parts = []
    for entry in (e for e in found if e.value.startswith("shoal.")):
        kind = entry.load().Settings
        docs = "\n".join(inspect.getdoc(base) or "" for base in kind.__mro__[:-3])
        rows = [
            f"| `{field.name}` | {_default(field)} | {_described(docs, kind)[field.name]} |"
            for field in _fields(kind)
            if field.name != "kind"
        ]
        first = (inspect.getdoc(kind) or "").partition("\n")[0]
        head = [f'### kind = "{entry.name}"', "", f"[{table}.NAME]: {first}", ""]
        parts += ["\n".join([*head, "| setting | default | meaning |", "|---|---|---|", *rows, ""])]
    return "\n".join(parts)


# ----------------------------------------------------------------------------------- estimators


def estimators() -> str:
    """Parameters of all estimators: those that all have, then a table for each kind of them."""
    from shoal import estimators

    common = estimators.parameters_of(estimators.Params)
    tables = {"every estimator": common}
    kinds: dict[type, list[str]] = {}
    for name in estimators.trainable():
        kinds.setdefault(estimators.ESTIMATORS[name].params, []).append(f"`{name}`")
    for kind, names in kinds.items():
        tables[", ".join(names)] = estimators.parameters_of(kind)[: -len(common)]
    return "\n".join(
        "\n".join([
            f"### {title}", "", "| parameter and default | meaning | kind |", "|---|---|---|",
            *(f"| `{one.example}` | {one.meaning} | {one.kind} |" for one in rows), "",
        ])
        for title, rows in tables.items()
    )  # fmt: skip


# ----------------------------------------------------------------------------------------- API


def routes() -> str:
    """Every route, a table a tag."""
    from shoal.controller.api import registry

    tags: dict[str, list[str]] = {}
    for route in registry.all_routes():
        path = re.sub(r"<(?:[^:>]+:)?([^>]+)>", r"{\1}", route.path)
        doc = " ".join((route.view.__doc__ or "").split("\n\n")[0].split())
        row = f"| `{route.method}` | `{path}` | {route.role or 'anonymous'} | {doc} |"
        tags.setdefault(route.tag, []).append(row)
    head = ["| method | path | role | what it does |", "|---|---|---|---|"]
    return "\n".join("\n".join([f"### {tag}", "", *head, *rows, ""]) for tag, rows in tags.items())


# --------------------------------------------------------------------------------- performance


def measured(name: str) -> str:
    """Content of bench/<name>.json as a table, with the machine and the notes below it."""
    report = msgspec.json.decode((DOCS.parent / "bench" / f"{name}.json").read_bytes())
    machine = report["machine"]
    rows = [
        f"| {row['what']} | {row['ours']:,.4g} {row['unit']} | {row['raw']:,.4g} | "
        f"{row['ratio']:,.3g} | {row['over']:,.3g} | {row['against']} | {_aim(row)} |"
        for row in report["rows"]
    ]
    head = ["| what | ours | raw | ours / raw | ours − raw | raw is | aim |",
            "|---|---:|---:|---:|---:|---|---|"]  # fmt: skip
    notes = [f"- {what}: {value}" for what, value in report["notes"].items()]
    where = (
        f"{report['date']}, {machine['cores']} cores of {machine['cpu']} ({machine['system']}), "
        f"Python {machine['python']}, load {report['load']:g} when it began."
    )
    return "\n".join([*head, *rows, "", where, "", *notes])


def _aim(row: dict[str, Any]) -> str:
    return f"{row['aim']}: {'held' if row['held'] else '**missed**'}" if row["aim"] else ""


# ------------------------------------------------------------------------------- error rates


def nulls() -> str:
    """False alarms of the drift decision, a kind of process a row, a pace and a budget a column."""
    lines = _monitoring()["nulls"]
    columns = list(dict.fromkeys((x["n"], x["window_s"], x["budget"]) for x in lines))
    head = [f"n = {n} per {s:g} s, budget {b:g}" for n, s, b in columns]
    cells = {(x["name"], x["n"], x["window_s"], x["budget"]): _null(x) for x in lines}
    names = dict.fromkeys(x["name"] for x in lines)
    return _grid(
        "nothing changes", head, {name: [cells[name, *c] for c in columns] for name in names}
    )


def _null(line: dict[str, Any]) -> str:
    """Such as "0 in 1,160 days: ≤ 207 a day"."""
    rate, least, most = (_few(line[k]) for k in ("findings_per_day", "at_least", "at_most"))
    scaled = f"{rate} ({least} to {most})" if line["findings"] else f"≤ {most}"
    broken = "**" if line["verdict"] == "broken" else ""
    return f"{broken}{line['findings']} in {line['feature_days']:,.0f} days: {scaled} a day{broken}"


def _few(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def drift_delays() -> str:
    """Windows until a change is found: a table a pace, a kind of process a row."""
    lines = _monitoring()["delays"]
    parts = []
    for n, window_s, before, within in dict.fromkeys(
        (x["n"], x["window_s"], x["before"], x["within"]) for x in lines
    ):
        here = [x for x in lines if (x["n"], x["window_s"]) == (n, window_s)]
        changes = list(dict.fromkeys(x["change"] for x in here))
        cells = {(x["name"], x["change"]): _delay(x) for x in here}
        names = dict.fromkeys(x["name"] for x in here)
        table = {name: [cells.get((name, c), "") for c in changes] for name in names}
        begin = f"n = {n} per {window_s:g} s; {before} windows before the change, {within} after it"
        parts += [f"**{begin}**", "", _grid("process", changes, table), ""]
    return "\n".join(parts)


def _delay(line: dict[str, Any]) -> str:
    """Median windows; the share found where it is not all; "–" where none was."""
    if not line["found"]:
        return "–"
    median = f"{line['median']:g}" if line["median"] else f"> {line['within']}"
    return median if line["found"] == 1 else f"{median} ({line['found']:.0%})"


def drift_peers() -> str:
    """False alarms of others on the same rows, as findings a day of the whole fleet."""
    lines = _monitoring()["peers"]
    columns = list(dict.fromkeys((x["peer"], x["n"], x["window_s"]) for x in lines))
    head = [f"{peer}, n = {n}" for peer, n, _ in columns]
    cells = {
        (x["name"], x["peer"], x["n"], x["window_s"]): f"{x['findings_per_day']:,.0f}"
        for x in lines
    }
    names = dict.fromkeys(x["name"] for x in lines)
    return _grid(
        "nothing changes", head, {name: [cells[name, *c] for c in columns] for name in names}
    )


def drift_recordings() -> str:
    """What was found in recordings of machines."""
    table = {}
    for x in _monitoring()["recordings"]:
        rule = {"product": "", "flat": ", no cycle", "short": ", no cycle, first 24"}[x["rule"]]
        name = f"{x['recording']}{rule}, {x['n']} rows in {x['window_s']:g} s: {x['what']}"
        if x["cases"]:
            median = f"{x['median_windows']:g}" if x["found"] else "–"
            table[name] = [f"{x['found']} of {x['cases']}", median, ""]
        else:
            table[name] = ["", "", f"{x['findings']} in {x['days']:.2g} days"]
    return _grid("recording", ["found", "after windows, median", "false alarms"], table)


def _monitoring() -> dict[str, Any]:
    return msgspec.json.decode((DOCS.parent / "bench/monitoring.json").read_bytes(), type=dict)


def _grid(corner: str, head: list[str], rows: dict[str, list[str]]) -> str:
    lines = [f"| {corner} | {' | '.join(head)} |", "|---|" + "---:|" * len(head)]
    return "\n".join([*lines, *(f"| {name} | {' | '.join(row)} |" for name, row in rows.items())])


REFERENCES: dict[str, Callable[[], str]] = {
    "shoal": lambda: command_line("shoal.cli.__main__", "cli", "shoal"),
    "shoal-agent": lambda: command_line("shoal.agent.__main__", "main", "shoal-agent"),
    "shoal-controller": lambda: command_line(
        "shoal.controller.__main__", "main", "shoal-controller"
    ),
    "exit-codes": exit_codes,
    "agent-settings": lambda: settings("shoal.agent.host.io.config", "Settings"),
    "controller-settings": lambda: settings("shoal.controller.host.settings", "Settings"),
    "routes": routes,
    "estimators": estimators,
    "sources": lambda: feeds("shoal.sources", "sources"),
    "sinks": lambda: feeds("shoal.sinks", "sinks"),
    "bench-sketch": lambda: measured("sketch"),
    "bench-inference": lambda: measured("inference"),
    "bench-footprint": lambda: measured("footprint"),
    "bench-ingest": lambda: measured("ingest"),
    "bench-rollouts": lambda: measured("rollouts"),
    "bench-rollout": lambda: measured("rollout"),
    "bench-update": lambda: measured("update"),
    "bench-federated": lambda: measured("federated"),
    "bench-federated-digits": lambda: measured("federated-digits"),
    "bench-monitoring": lambda: measured("monitoring"),
    "drift-nulls": nulls,
    "drift-delays": drift_delays,
    "drift-peers": drift_peers,
    "drift-recordings": drift_recordings,
}

if __name__ == "__main__":
    sys.exit(main())
