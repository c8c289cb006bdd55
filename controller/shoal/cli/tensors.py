"""Rendering of a model's tensors, and of what an ONNX file says of itself."""

from typing import Any

import msgspec

from shoal.cli.render import Columns, JsonObject, card, plain, size, table
from shoal.manifest import DeclaredSteps
from shoal.signature import Tensor

_TENSOR = "datatype and shape"


def signature_tables(report: JsonObject) -> list[Any]:
    """Inputs and outputs of a release of tensors, as measured, with its notes."""
    states = {one["taken"]: one["given"] for one in report["states"]}

    def text(one: JsonObject) -> str:
        tensor = msgspec.convert(one, Tensor)
        more = ", may be left out" if tensor.default is not None else ""
        more += (
            f", state: takes {states[tensor.name]} of the step before"
            if (tensor.name in states)
            else ""
        )
        more += f", sketched as {tensor.sketched_text}" if tensor.sketched else ""
        return plain(f"{tensor.datatype} {tensor.shape_text}{more}")

    together = {
        "batch": "requests run together, each answered as if alone",
        "alone": "one request a run",
    }
    parts: list[Any] = []
    for what in ("inputs", "outputs"):
        columns: Columns = {what[:-1]: "name", _TENSOR: text}
        parts += ["", table(report[what], columns, empty=f"no {what}")]
    measured = {
        "operators": lambda r: operators_of(r["facts"]),
        "memory": lambda r: f"about {r['facts']['memory_mb']:.0f} MB to load it",
        "time": lambda r: f"{r['run_ms']:.3g} ms a run on the controller",
        "batching": lambda r: together[r["together"]],
        "notes": lambda r: "\n".join(f"- {plain(note)}" for note in r["notes"]),
    }
    if claimed := report.get("task"):
        parts += ["", _claims(claimed)]
    if declared := report.get("steps"):
        lines = msgspec.convert(declared, DeclaredSteps).lines
        measured["steps"] = lambda r: "\n".join(f"- {plain(line)}" for line in lines)
        measured["author's file"] = lambda r: f"SHA-256 {declared['source_sha256']}"
    return [*parts, "", card(report, measured)]


def _claims(claimed: JsonObject) -> Any:
    """What the outputs mean, and how it was measured."""
    meaning = claimed["meaning"]
    fields = {name: value for name, value in meaning.items() if name != "task"}
    measured = f"on {claimed['items']} of {claimed['given']} items"
    columns: Columns = {
        f"task {meaning['task']}": lambda c: "\n".join(
            f"{plain(name)}: {_short(value)}" for name, value in fields.items()
        ),
        "measured": lambda c: measured if c["metrics"] else "[yellow]no[/yellow]",
        "notes on it": lambda c: "\n".join(f"- {plain(note)}" for note in c["notes"]),
    }
    return card(claimed, columns)


def _short(value: Any) -> str:
    """
    >>> _short(["a"] * 30)[-11:], _short(0.5)
    ('and 10 more', '0.5')
    """
    if not isinstance(value, list):
        return plain(str(value))
    more = f" and {len(value) - 20} more" if len(value) > 20 else ""
    return plain(", ".join(map(str, value[:20]))) + more


def facts_tables(inspection: JsonObject) -> list[Any]:
    """What an ONNX file declares, and which profiles can carry it."""
    facts = inspection["facts"]

    def text(one: JsonObject) -> str:
        shape = "of no declared shape" if one["shape"] is None else _list(one["shape"])
        return plain(f"{one['type']} {shape}")

    about: Columns = {
        "file": lambda i: size(i["size"]),
        "parameters": lambda i: f"{facts['parameters']:,}",
        "memory": lambda i: f"about {facts['memory_mb']:.0f} MB to load it",
        "opsets": lambda i: plain({k or "ai.onnx": v for k, v in facts["opsets"].items()}),
        "operators": lambda i: operators_of(facts),
    }
    parts: list[Any] = [card(inspection, about)]
    for what in ("inputs", "outputs"):
        columns: Columns = {what[:-1]: "name", "declared": text}
        parts += ["", table(facts[what], columns, empty=f"no {what}")]
    verdicts: Columns = {
        "profile": "profile",
        "can carry it": lambda v: "[green]yes[/green]" if v["passed"] else "[red]no[/red]",
        "why": "why",
    }
    return [*parts, "", table(inspection["verdicts"], verdicts, empty="no profile")]


def operators_of(facts: JsonObject) -> str:
    """
    >>> operators_of({"operators": {"Add": 2, "Conv": 1}})
    'Add ×2, Conv'
    """
    counts = facts["operators"].items()
    return ", ".join(plain(name) + (f" ×{n}" if n > 1 else "") for name, n in counts)


def _list(shape: list[int | str]) -> str:
    return f"[{', '.join(map(str, shape))}]"
