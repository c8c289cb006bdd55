"""The estimators of `shoal model train` and their parameters, in its --help and as a list."""

from typing import Any

import click
from rich.console import Group

from shoal import estimators
from shoal.cli.api import at
from shoal.cli.command import Command, Session
from shoal.cli.render import Columns, JsonObject, plain, table
from shoal.errors import AbsentError


class TrainCommand(Command):
    """A command whose --help ends with every estimator and parameter."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        listed = estimators.list_estimators()
        with formatter.section("Estimators (--estimator)"):
            formatter.write_dl([(one.name, _summary(one)) for one in listed])
        own: dict[str, list[str]] = {}
        for one in listed:
            own.setdefault(_rows_text(_own(one.parameters)), []).append(one.name)
        with formatter.section("Parameters (--param NAME=VALUE), with their defaults"):
            formatter.write_text("of every estimator:")
            _write(formatter, _rows(estimators.parameters_of(estimators.Params)))
            for text, names in own.items():
                formatter.write_paragraph()
                formatter.write_text(f"{', '.join(names)}:")
                _write(formatter, [tuple(line.split("\t")) for line in text.splitlines()])


def _own(parameters: list[estimators.Parameter]) -> list[estimators.Parameter]:
    common = estimators.Params.__struct_fields__
    return [one for one in parameters if one.name not in common]


def _summary(one: estimators.EstimatorFacts) -> str:
    default = f"; the default of {one.task}" if one.default else ""
    return f"{one.task}: {one.meaning}{default}"


def _rows(parameters: list[estimators.Parameter]) -> list[tuple[str, ...]]:
    return [(one.example, f"{one.meaning} ({one.kind})") for one in parameters]


def _rows_text(parameters: list[estimators.Parameter]) -> str:
    return "\n".join("\t".join(row) for row in _rows(parameters))


def _write(formatter: click.HelpFormatter, rows: list[tuple[str, ...]]) -> None:
    with formatter.indentation():
        formatter.write_dl([(name, said) for name, said in rows])


@click.command("estimators", cls=Command)
@click.argument("name", required=False)
@click.pass_obj
def list_estimators(session: Session, name: str | None) -> None:
    """List what the controller can train, with the parameters of one, or of all with --json.

    \b
    Examples:
      shoal model estimators
      shoal model estimators random-forest
    """
    found = list(session.api.items(at("estimators")))
    if name is None:
        columns: Columns = {
            "estimator": "name",
            "task": "task",
            "what it is": "meaning",
            "taken when none is named": "default",
            "parameters": lambda e: ", ".join(p["name"] for p in e["parameters"]),
        }
        session.show(found, lambda: table(found, columns, empty="none"))
        return
    one = next((one for one in found if one["name"] == name), None)
    if one is None:
        raise AbsentError("estimator", name)
    session.show(one, lambda: _card(one))


def _card(one: JsonObject) -> Any:
    columns: Columns = {
        "parameter": "name",
        "default": lambda p: estimators.Parameter(**p).example.partition("=")[2],
        "kind": "kind",
        "meaning": "meaning",
    }
    head = f"{one['name']}: {one['meaning']}, for {one['task']}"
    return Group(plain(head), table(one["parameters"], columns, empty="no parameter"))
