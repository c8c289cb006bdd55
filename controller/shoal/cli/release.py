"""`shoal release`: releases with their metrics per variant, gates and signatures."""

from typing import Any

import click
from rich.console import Group

from shoal.cli import release_file
from shoal.cli.api import at
from shoal.cli.command import CommandGroup, Session
from shoal.cli.deletion import deletion_of
from shoal.cli.options import confirm, listed, yes_option
from shoal.cli.render import Columns, JsonObject, card, instant, plain, size, state, table
from shoal.cli.tensors import signature_tables

STATES = ("", "validated", "refused", "candidate", "released")
_UNCLAIMED = "it was not measured against data, and has no labels and no drift reference"


@click.group(cls=CommandGroup)
def release() -> None:
    """Releases: signed versions of a model."""


@release.command("list")
@click.option("--model", default="", help="Only this model's.")
@click.option(
    "--state", "state_", default="", type=click.Choice(STATES), help="Only in this state."
)
@click.option("--all", "all_", is_flag=True, help="With those that are retired.")
@listed
@click.pass_obj
def list_releases(
    session: Session, model: str, state_: str, all_: bool, search: str, limit: int
) -> None:
    """List releases, newest first.

    \b
    Examples:
      shoal release list --model lot-codes
      shoal release list --state candidate
    """
    query: dict[str, Any] = {"model": model, "state": state_, "q": search}
    query |= {"all": "true"} if all_ else {}
    found = list(session.api.items(at("releases"), most=limit, **query))
    columns: Columns = {
        "release": ref,
        "state": state(),
        "refused because": "why_refused",
        "retired": retired,
        "revoked": revoked,
        "dataset": "dataset",
        "metrics": "metrics",
        "trigger": "trigger",
        "when": lambda r: instant(r["created_at"]),
        "by": "created_by",
    }
    none = "no such release; make one with: shoal model train MODEL --dataset NAME"
    session.show(found, lambda: table(found, columns, empty=none))


@release.command("show")
@click.argument("release_", metavar="MODEL@N")
@click.pass_obj
def show_release(session: Session, release_: str) -> None:
    """Show a release: lineage, metrics per variant, gates per profile, signatures.

    \b
    Example:
      shoal release show lot-codes@2
    """
    found = session.api.get(at("releases", release_))
    session.show(found, lambda: release_card(found))


@release.command("publish")
@click.argument("release_", metavar="MODEL@N")
@click.option(
    "--override",
    default="",
    metavar="REASON",
    help="Publish although a gate refused it. The reason goes into the audit log.",
)
@click.pass_obj
def publish(session: Session, release_: str, override: str) -> None:
    """Sign a release, so that devices of the stable ring accept it.

    \b
    Examples:
      shoal release publish lot-codes@2
      shoal release publish lot-codes@3 --override "test of the device's own gates"
    """
    made = session.api.post(at("releases", release_, "publish"), {"override": override})
    session.show(made, lambda: Group(release_card(made), "", next_step(made)))


@release.command("retire")
@click.argument("release_", metavar="MODEL@N")
@click.option("--reason", default="", help="For the audit log.")
@click.pass_obj
def retire(session: Session, release_: str, reason: str) -> None:
    """Retire a release: it is kept, and cannot be published or rolled out any more.

    Devices that serve it go on.

    \b
    Example:
      shoal release retire lot-codes@1 --reason "trained on wrong labels"
    """
    after = session.api.post(at("releases", release_, "retire"), {"reason": reason})
    back = f"take it back with: shoal release unretire {ref(after)}"
    session.show(after, lambda: Group(f"{ref(after)} is retired", back))


@release.command("unretire")
@click.argument("release_", metavar="MODEL@N")
@click.pass_obj
def unretire(session: Session, release_: str) -> None:
    """Take a retired release back.

    \b
    Example:
      shoal release unretire lot-codes@1
    """
    after = session.api.post(at("releases", release_, "unretire"))
    session.show(after, lambda: f"{ref(after)} can be published and rolled out again")


@release.command("revoke")
@click.argument("release_", metavar="MODEL@N")
@click.option("--reason", required=True, help="Stored, shown with the release, and audited.")
@yes_option
@click.pass_obj
def revoke(session: Session, release_: str, reason: str, yes: bool) -> None:
    """Revoke a release for good, as an admin: it must never run again.

    Nothing orders it any more: its rollouts are rolled back, groups that run it fall back to the
    release before, pins to it end. The model's security epoch rises: devices that have seen it
    refuse the release even if the controller's online keys are stolen. Other releases of the
    model can be ordered as before. To only take a release out of use, retire it.

    \b
    Example:
      shoal release revoke lot-codes@3 --reason "a customer's photos can be read out of it"
    """
    if not yes:
        confirm(f"Revoke {release_}? It can never be published or rolled out again.")
    after = session.api.post(at("releases", release_, "revoke"), {"reason": reason})
    about: Columns = {
        "revoked": "release",
        "security epoch": "epoch",
        "rollouts ended": "rollouts",
        "groups": lambda r: plain("; ".join(r["groups"])),
        "devices that serve it": "serving",
    }
    step = ["", plain(after["next_step"])] if after["next_step"] else []
    session.show(after, lambda: Group(card(after, about), *step))


release.add_command(
    deletion_of("releases", "a release that no device serves", "shoal release delete lot-codes@1")
)
for _command in release_file.COMMANDS:
    release.add_command(_command)


def retired(found: JsonObject) -> str:
    """Since when and by whom; "" for what is not retired."""
    since = found.get("retired_at", 0)
    return plain(f"{instant(since)} by {found['retired_by']}") if since else ""


def revoked(found: JsonObject) -> str:
    """Since when, by whom and why; "" for what was not revoked."""
    since = found.get("revoked_at", 0)
    return plain(f"{instant(since)}: {found['quarantined']}") if since else ""


def quarantined(found: JsonObject) -> str:
    """Why it is in quarantine; "" if it is not, or was revoked."""
    return "" if found.get("revoked_at", 0) else plain(found["quarantined"])


def ref(release: JsonObject) -> str:
    return plain(f"{release['model']}@{release['version']}")


def next_step(release: JsonObject) -> str:
    """The command that comes next for a release."""
    name = ref(release)
    if release.get("revoked_at", 0):
        return f"{name} was revoked: it cannot be published"
    if release["quarantined"]:
        return f"{name} is in quarantine: it cannot be published"
    if release["state"] == "released":
        return f"roll it out with: shoal rollout start {name}"
    if release["state"] == "refused":
        return f'publish it all the same with: shoal release publish {name} --override "REASON"'
    return f"sign it with: shoal release publish {name}"


def trained_by(release: JsonObject) -> str:
    """The federated rounds that trained a release; "" for none."""
    origin = release.get("origin")
    if not origin:
        return ""
    examples = sum(one["examples"] for one in origin["devices"])
    summary = (
        f"round {origin['number']} of {origin['task']} ({origin['strategy']}): "
        f"{len(origin['devices'])} devices, {len(origin['rounds'])} rounds"
    )
    summary += f", {examples} rows" if examples else ""
    if origin["epsilon"] is not None:
        summary += f", epsilon {origin['epsilon']:.2f} at delta {origin['delta']:g}"
    return plain(summary)


def _agreement(variant: JsonObject) -> str:
    """Each output of a variant beside fp32's."""
    return "\n".join(
        plain(f"{one['output']}: error {one['max_error']:.3f}")
        + ("" if one["cosine"] is None else f", cosine {one['cosine']:.4f}")
        + ("" if one["same"] is None else f", same {one['same']:.1%}")
        for one in variant["outputs"]
    )


def _detail(variant: JsonObject) -> str:
    alone = variant["in_company"] and not variant["dropped"]
    runs = "each request is a run of its own" if alone else ""
    return "; ".join(filter(None, (variant["detail"], runs)))


def release_card(found: JsonObject) -> Group:
    """Summary of a release for the terminal."""
    tensors = found.get("tensors")
    by_site = "balanced_accuracy" if found["task"] == "classification" else "r2"
    about: Columns = {
        "release": ref,
        "state": state(),
        "refused because": "why_refused",
        "retired": retired,
        "revoked": revoked,
        "override": "override",
        "task": "task",
        "nothing is claimed": lambda r: _UNCLAIMED if tensors and not tensors.get("task") else "",
        "dataset": "dataset",
        "data sha256": "dataset_sha256",
        "estimator": "estimator",
        "params": "params",
        "metrics": "metrics",
        f"{by_site} per site": "by_site",
        "trained by": trained_by,
        "quarantined": quarantined,
        "parent": "parent",
        "trigger": "trigger",
        "operation": "operation",
        "made": lambda r: instant(r["created_at"]),
        "by": "created_by",
        "notes": lambda r: "\n".join(f"- {plain(note)}" for note in r["notes"]),
    }
    measured: Columns = {
        "metrics": "metrics",
        "cosine to fp32": lambda v: f"{v['cosine']:.5f}" if v["size"] else "",
    }
    variants: Columns = {
        "variant": "name",
        "size": lambda v: size(v["size"]) if v["size"] else "",
        "time": lambda v: "" if v["time_ratio"] is None else f"x{v['time_ratio']:.2f}",
        **({"agreement with fp32": _agreement} if tensors else measured),
        "in the release": lambda v: (
            f"[yellow]no[/yellow]: {plain(v['dropped'])}" if v["dropped"] else "yes"
        ),
        "detail": lambda v: plain(_detail(v)),
    }
    verdicts: Columns = {
        "profile": "profile",
        "variant": "variant",
        "gate": lambda v: "[green]passed[/green]" if v["passed"] else "[red]refused[/red]",
        "why": "why",
    }
    signatures: Columns = {
        "signed as": "role",
        "key": lambda s: plain(s["key"][:16]),
        "by": "by",
        "when": lambda s: instant(s["at"]),
    }
    trainers: Columns = {name: name for name in ("device", "site", "rounds", "examples")}
    devices = (found.get("origin") or {}).get("devices", [])
    unsigned = f"not signed; {next_step(found)}"
    return Group(
        card(found, about),
        *(signature_tables(tensors) if tensors else []),
        "", table(found["variants"], variants, empty="no variant"),
        "", table(found["verdicts"], verdicts, empty="no gate has run"),
        "", table(found["signatures"], signatures, empty=unsigned),
        *(["", table(devices, trainers, empty="")] if devices else []),
    )  # fmt: skip
