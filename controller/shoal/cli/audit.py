"""`shoal audit`: who changed what, and the proof that nothing of it was edited or removed."""

import sys
from pathlib import Path
from typing import Any

import click

from shoal.cli import audit_file
from shoal.cli.api import at
from shoal.cli.command import CommandGroup, Session
from shoal.cli.render import Columns, instant, plain, table
from shoal.errors import SettingError


@click.group(cls=CommandGroup)
def audit() -> None:
    """Audit log: list, export, verify."""


_FILTERS = (
    click.option("--actor", default="", help="Only what this user did."),
    click.option("--verb", default="", help="Such as rollout.start, or 'rollout.*' for all such."),
    click.option("--subject", default="", help="Such as a device's name."),
    click.option("--since", type=click.DateTime(), help="From this time on, UTC."),
    click.option("--until", type=click.DateTime(), help="Before this time, UTC."),
)


def _filtered(command: Any) -> Any:
    for option in reversed(_FILTERS):
        command = option(command)
    return command


@audit.command("list")
@_filtered
@click.option("--limit", default=50, show_default=True, help="Maximum number; 0 for all.")
@click.pass_obj
def list_audit(session: Session, /, limit: int, **wanted: Any) -> None:
    """List entries, newest first.

    \b
    Examples:
      shoal audit list --verb 'user.*'
      shoal audit list --subject press-4 --since 2026-11-01
    """
    found = list(session.api.items(at("audit"), most=limit, **_query(wanted)))
    columns: Columns = {
        "no.": "id",
        "when": lambda e: instant(e["at"]),
        "who": "actor",
        "from": "address",
        "what": "verb",
        "subject": "subject",
        "details": "detail",
    }
    session.show(found, lambda: table(found, columns, empty="no such entry"))


@audit.command("export")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@_filtered
@click.option("--csv", is_flag=True, help="CSV for a spreadsheet, not JSON lines.")
@click.pass_obj
def export(session: Session, /, file: Path, csv: bool, **wanted: Any) -> None:
    """Write every entry to FILE, oldest first: JSON lines, that end with the signed head.

    \b
    Examples:
      shoal audit export audit.jsonl
      shoal audit export signs.csv --csv --verb 'release.sign.*'
    """
    path = at("audit", "export.csv" if csv else "export")
    try:
        with file.open("wb") as target:
            session.api.download(path, target, **_query(wanted))
    except OSError as error:
        raise SettingError(f"{file}: {error.strerror}", "choose another file") from error
    whole = not csv and not any(wanted.values())
    hint = f"; now: shoal audit verify {plain(file)}" if whole else ""
    session.show({"file": str(file)}, lambda: f"written to {plain(file)}{hint}")


@audit.command("head")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.pass_obj
def head(session: Session, file: Path) -> None:
    """Write the signed head of the log to FILE: keep it elsewhere, for a later `verify --head`.

    \b
    Example:
      shoal audit head 2026-12-01.json
    """
    found = session.api.get(at("audit", "head"))
    audit_file.save_head(file, found)
    number = found["timestamp"]["signed"].get("shoal", {}).get("audit", {}).get("id", 0)
    session.show(found, lambda: f"head {number} is written to {plain(file)}")


@audit.command("verify")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--head", "heads", multiple=True, type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Also hold it against this one, from `shoal audit head`; may be repeated.",
)  # fmt: skip
@click.option(
    "--root", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="root.json that you trust, such as a device's; default: that of the first --head, or "
    "else of FILE itself.",
)  # fmt: skip
@click.pass_obj
def verify(session: Session, file: Path, heads: tuple[Path, ...], root: Path | None) -> None:
    """Prove, without a controller, that an exported log was not edited, cut or rewritten.

    Names the first entry that is wrong, and ends with 1. A log that was rewritten by who has the
    controller's keys is found only against a --head that was kept elsewhere.

    \b
    Examples:
      shoal audit verify audit.jsonl
      shoal audit verify audit.jsonl --head 2026-12-01.json --root root.json
    """
    found = audit_file.verify(file, heads, root)
    trust = f"root of {found['root']}, SHA-256 {found['root_sha256']}"
    line = f"{found['entries']} entries are whole, up to the signed head; {trust}"
    session.show(found, lambda: line)
    if root is None and not heads:
        click.echo(
            "  hint: the file vouches for itself; compare with a --head or --root kept elsewhere",
            file=sys.stderr,
        )


def _query(wanted: dict[str, Any]) -> dict[str, Any]:
    """Query of the filters; times as Unix seconds."""
    from datetime import UTC

    times = {k: wanted[k].replace(tzinfo=UTC).timestamp() for k in ("since", "until") if wanted[k]}
    return {k: v for k, v in wanted.items() if v} | times
