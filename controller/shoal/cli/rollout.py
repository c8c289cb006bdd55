"""`shoal rollout`: roll a release out to the fleet in stages, with a gate after each."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Group, RenderableType
from rich.live import Live

from shoal.cli.api import Api, JsonObject, at
from shoal.cli.command import CommandGroup, Session
from shoal.cli.exit_codes import FailedError
from shoal.cli.options import DURATION, confirm, listed, timeout_option, yes_option
from shoal.cli.plan_options import DEFAULT_STAGES, STAGES_WITHOUT_CANARIES
from shoal.cli.plan_options import gates as gate_plans
from shoal.cli.plan_options import stages as stage_plans
from shoal.cli.render import Columns, card, instant, plain, state, table, when
from shoal.cli.waiting import poll

#: States in which a rollout waits for a person or has ended.
AT_REST = frozenset(
    {"FINISHED", "PAUSED", "STOPPED", "ROLLED_BACK", "WAITING_FOR_APPROVAL", "FAILED"}
)


@click.group(cls=CommandGroup)
def rollout() -> None:
    """Rollouts: a release, stage by stage, with a gate after each."""


@rollout.command("start")
@click.argument("release", metavar="MODEL@N")
@click.option(
    "--stage",
    "stages",
    multiple=True,
    metavar="NAME:KEY=VALUE,...",
    help="A stage, in order: ring, site, profile, label and percent select its devices; threshold "
    "(failed share in percent), min (finished devices) and disagree (maximum percent of recent "
    "inputs with another output than the serving release) are its gate. "
    "Default: canary:ring=canary, then everyone.",
)
@click.option(
    "--gate",
    "gates",
    multiple=True,
    metavar="METRIC[:KEY=VALUE,...]",
    help="Stop when the release makes errors, latency or accuracy worse: each device of a stage "
    "against its own past, and all of them against devices with another release. tolerance: how "
    "many times as frequent errors, slow calls or wrong predictions may be (1.25); acceptable: "
    "percent that is good enough whatever it was.",
)
@click.option(
    "--analyse",
    type=DURATION,
    default="24h",
    show_default=True,
    help="Time for --gate to decide once a stage's devices have finished; then it pauses.",
)
@click.option(
    "--on-failure",
    type=click.Choice(["pause", "stop", "rollback"]),
    default="pause",
    show_default=True,
    help="When a gate fails.",
)
@click.option(
    "--deadline",
    type=DURATION,
    default="24h",
    show_default=True,
    help="Time limit of one device's attempt.",
)
@click.option("--attempts", default=1, show_default=True, help="Tries per device.")
@click.option(
    "--at-once",
    default=0,
    show_default=True,
    help="Maximum online devices that update at the same time; 0 for all of a stage.",
)
@click.option(
    "--wait/--no-wait", default=False, show_default=True, help="Watch until it ends or waits."
)
@timeout_option
@click.pass_obj
def start(
    session: Session,
    release: str,
    stages: tuple[str, ...],
    gates: tuple[str, ...],
    analyse: float,
    on_failure: str,
    deadline: float,
    attempts: int,
    at_once: int,
    wait: bool,
    timeout: float,
) -> None:
    """Start a rollout of a release.

    \b
    Examples:
      shoal rollout start lot-codes@2 --wait
      shoal rollout start lot-codes@2 --stage canary:ring=canary --stage tenth:percent=10 \\
          --stage rest --on-failure rollback
      shoal rollout start lot-codes@2 --gate errors --gate latency:tolerance=1.5
    """
    plan = {
        "release": release,
        "stages": stage_plans(stages or _default_stages(session)),
        "on_failure": on_failure,
        "deadline_s": deadline,
        "max_attempts": attempts,
        "max_concurrent": at_once,
    }
    if gates:
        plan |= {"gates": gate_plans(gates), "analyse_s": analyse}
    started = session.api.post(at("rollouts"), plan)
    if wait:
        _watch(session, started["id"], timeout)
        return
    hint = f"watch it with: shoal rollout watch {started['id']}"
    session.show(started, lambda: Group(rollout_view(started), "", hint))


@rollout.command("watch")
@click.argument("id_", metavar="ID")
@timeout_option
@click.pass_obj
def watch(session: Session, id_: str, timeout: float) -> None:
    """Follow a rollout until it ends or waits. Exit code 0 when finished, else 1.

    \b
    Example:
      shoal rollout watch 01h9
    """
    _watch(session, id_, timeout)


@rollout.command("list")
@click.option("--state", "state_", default="", help="Only in this state: PAUSED, unfinished, ...")
@click.option("--model", default="", help="Only of this model.")
@click.option("--release", default="", metavar="MODEL@N", help="Only of this release.")
@listed
@click.pass_obj
def list_rollouts(session: Session, /, state_: str, search: str, limit: int, **exact: str) -> None:
    """List rollouts, newest first.

    \b
    Examples:
      shoal rollout list
      shoal rollout list --state unfinished --search lot-codes
    """
    query = exact | {"state": state_, "q": search}
    found = list(session.api.items(at("rollouts"), most=limit, **query))
    columns: Columns = {
        "rollout": "id",
        "release": "release",
        "state": state(),
        "reason": "reason",
        "stages": lambda r: plain([f"{s['name']} {s['state']}" for s in r["stages"]]),
        "started": when("created_at", session.now),
        "by": "created_by",
    }
    none = "no such rollout; start one with: shoal rollout start MODEL@N"
    session.show(found, lambda: table(found, columns, empty=none))


@rollout.command("show")
@click.argument("id_", metavar="ID")
@click.pass_obj
def show_rollout(session: Session, id_: str) -> None:
    """Show a rollout: stages, failures by cause, and its devices.

    \b
    Example:
      shoal rollout show 01h9
    """
    found = whole(session.api, id_)
    session.show(found, lambda: _full_view(session, found))


@rollout.command("receipts")
@click.argument("id_", metavar="ID")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="File to write."
)
@click.pass_obj
def write_receipts(session: Session, id_: str, out: Path) -> None:
    """Write what each verdict of --gate was computed from.

    On any machine with Shoal, without a controller, `shoal-controller replay FILE` computes every
    verdict again and names an input that was changed.

    \b
    Example:
      shoal rollout receipts 01h9 --out receipts.json
    """
    found = session.api.get(at("rollouts", id_, "receipts"))
    out.write_bytes(msgspec.json.encode(found))
    said = {"file": str(out), "looks": len(found["looks"]), "inputs": len(found["inputs"])}
    text = f"{said['looks']} looks; compute them again: shoal-controller replay {out}"
    session.show(said, lambda: text)


@rollout.command("replay")
@click.argument("id_", metavar="ID")
@click.option(
    "--gate", "gates", multiple=True, required=True, metavar="METRIC[:KEY=VALUE,...]",
    help="As of `shoal rollout start`.",
)  # fmt: skip
@click.pass_obj
def replay(session: Session, id_: str, gates: tuple[str, ...]) -> None:
    """Say what a rollout would have done under other gates. Changes nothing.

    Of rollouts that had some --gate: all metrics are recorded, whichever was asked for.

    \b
    Example:
      shoal rollout replay 01h9 --gate latency:tolerance=1.1
    """
    found = session.api.post(at("rollouts", id_, "replay"), {"gates": gate_plans(gates)})
    session.show(found, lambda: _would_have(found))


def _would_have(found: JsonObject) -> str:
    """A counterfactual in a sentence.

    >>> end = {"stage": "canary", "of": 900, "devices": 14, "why": "errors are up", "looks": 3}
    >>> _would_have({"outcome": "FAILED", **end})
    'would have stopped at stage canary, 14 devices instead of 900: errors are up'
    """
    if found["outcome"] == "FAILED":
        return (
            f"would have stopped at stage {found['stage']}, {found['devices']} devices instead of "
            f"{found['of']}: {found['why']}"
        )
    if found["outcome"] == "PASSED":
        return f"would have gone the same way, {found['of']} devices: {found['why']}"
    return f"would not have decided in {found['looks']} looks: {found['why']}"


def _add_action(verb: str, text: str) -> None:
    """Add the command that posts `verb` of a rollout."""

    @rollout.command(verb, help=f"{text}\n\n\b\nExample:\n  shoal rollout {verb} 01h9")
    @click.argument("id_", metavar="ID")
    @click.pass_obj
    def act(session: Session, id_: str) -> None:
        _act(session, id_, verb)


_add_action("approve", "Approve a rollout that another user started, where approval is required.")
_add_action("pause", "Pause: update no further device. Running updates finish.")
_add_action("resume", "Resume a paused rollout.")


@rollout.command("abort")
@click.argument("id_", metavar="ID")
@click.option(
    "--rollback",
    is_flag=True,
    help="Also roll every device back to its previous release, or to none where it had none.",
)
@yes_option
@click.pass_obj
def abort(session: Session, id_: str, rollback: bool, yes: bool) -> None:
    """Stop a rollout for good.

    Devices that have not swapped yet cancel the update. Those that have keep the new release,
    unless --rollback is given.

    \b
    Examples:
      shoal rollout abort 01h9
      shoal rollout abort 01h9 --rollback
    """
    if not yes:
        confirm(f"Abort rollout {id_}?")
    _act(session, id_, "abort", rollback=rollback)


def whole(api: Api, id_: str) -> JsonObject:
    """A rollout with its devices and its failures by cause."""
    return {
        "rollout": api.get(at("rollouts", id_)),
        "devices": list(api.items(at("rollouts", id_, "devices"))),
        "failures": list(api.items(at("rollouts", id_, "failures"))),
        "evidence": _newest_looks(api, id_),
    }


def _newest_looks(api: Api, id_: str) -> list[JsonObject]:
    """The newest look of the behaviour gates at each stage."""
    found = api.get(at("rollouts", id_))
    if not found["plan"].get("gates"):
        return []
    begun = [stage["name"] for stage in found["stages"] if stage["started_at"]]
    looks = [api.get(at("rollouts", id_, "evidence"), stage=name, limit=1) for name in begun]
    return [look for page in looks for look in page["items"]]


def _evidence_view(looks: list[JsonObject]) -> RenderableType:
    """The metrics of each look, canaries and control."""
    rows = [{"stage": look["stage"], **metric} for look in looks for metric in look["metrics"]]
    columns: Columns = {
        "stage": "stage",
        "behaviour": "metric",
        "state": state(),
        "canaries": lambda m: _side(m["canary"]),
        "control": lambda m: _side(m["control"]),
        "ratio": lambda m: f"{m['ratio']:.2f} (max {m['tolerance']:g})",
        "worse": lambda m: f"{m['ln_worse']:.1f} of {m['worse_at']:.1f}",
        "safe": lambda m: f"{m['ln_safe']:.1f} of {m['safe_at']:.1f}",
        "missing": "missing",
    }
    return table(rows, columns, empty="no behaviour compared")


def _side(side: Mapping[str, Any]) -> str:
    """Events of one side, before and since, and how many of its devices report.

    >>> _side({"now_pct": 2.0, "past_pct": 1.0, "reporting": 3, "devices": 4})
    '2 %, before 1 % (3 of 4)'
    """
    now, past = (f"{side[name]:.3g} %" for name in ("now_pct", "past_pct"))
    return f"{now}, before {past} ({side['reporting']} of {side['devices']})"


def rollout_view(found: JsonObject) -> Group:
    """A rollout and its stages."""
    about: Columns = {"rollout": "id", "release": "release", "state": state(), "reason": "reason"}
    columns: Columns = {
        "stage": "name",
        "state": state(),
        "devices": "devices",
        "succeeded": "succeeded",
        "failed": "failed",
        "skipped": "skipped",
        "unseen": "unseen",
        "disagrees": disagrees,
        "gate": "verdict",
    }
    rows = [*found["stages"], *_trailing(found)]
    return Group(card(found, about), "", table(rows, columns, empty="no stage"))


def _trailing(found: JsonObject) -> list[JsonObject]:
    """The trailing stage as a row, of a rollout that has one.

    >>> _trailing({"trailing": None})
    []
    """
    stage = found.get("trailing")
    missing = {"unseen": 0, "disagree": 0.0, "compared": 0}
    return [missing | stage | {"name": "trailing", "verdict": stage["reason"]}] if stage else []


def _full_view(session: Session, found: JsonObject) -> Group:
    failures: Columns = {"cause": "cause", "devices": "count", "example": "detail"}
    devices: Columns = {
        "device": "device",
        "site": "site",
        "profile": "profile",
        "stage": "stage",
        "state": state(),
        "since": when("updated_at", session.now),
        "disagrees": lambda d: disagrees(d["facts"]),
        "cause": "cause",
        "detail": "detail",
    }
    compared = ["", _evidence_view(found["evidence"])] if found["evidence"] else []
    return Group(
        rollout_view(found["rollout"]), *compared,
        "", table(found["failures"], failures, empty="nothing failed"),
        "", table(found["devices"], devices, empty="no device"),
    )  # fmt: skip


def disagrees(found: Mapping[str, Any]) -> str:
    """Shadow disagreement of a stage or device; "" when nothing was compared.

    >>> disagrees({"disagree": 0.0215, "compared": 256}), disagrees({})
    ('2.1 % of 256', '')
    """
    rows = found.get("compared", 0)
    return f"{100 * found['disagree']:.2g} % of {rows}" if rows else ""


def _default_stages(session: Session) -> tuple[str, ...]:
    """Default stages: canary devices first, if there are any."""
    canaries = session.api.get(at("devices"), ring="canary", state="enrolled", limit=1)
    if canaries["items"]:
        return DEFAULT_STAGES
    session.err.print(
        "no device is in the canary ring: one stage with all devices "
        "(make one with: shoal-agent enroll --ring canary)",
        soft_wrap=True,
    )
    return STAGES_WITHOUT_CANARIES


def _act(session: Session, id_: str, verb: str, **body: object) -> None:
    after = session.api.post(at("rollouts", id_, verb), body)
    session.show(after, lambda: rollout_view(after))


def _progress(found: JsonObject) -> str:
    """Progress of a rollout in one line.

    >>> stage = {"name": "canary", "state": "RUNNING", "devices": 4, "succeeded": 1, "failed": 0}
    >>> _progress({"state": "RUNNING", "stages": [stage]})
    'RUNNING; canary RUNNING, 1 of 4 succeeded, 0 failed'
    """
    stages = [
        f"{s['name']} {s['state']}, {s['succeeded']} of {s['devices']} succeeded, "
        f"{s['failed']} failed"
        for s in found["stages"]
        if s["state"] != "SCHEDULED"
    ]
    return "; ".join([found["state"], *stages[-1:]])


def _watch(session: Session, id_: str, timeout_s: float) -> None:
    """Show progress on stderr until the rollout ends or waits, in a pipe a line per change;
    FailedError unless it finished."""
    shown = ""
    with Live(console=session.err, refresh_per_second=4, transient=True) as live:

        def look() -> JsonObject:
            nonlocal shown
            seen: JsonObject = session.api.get(at("rollouts", id_))
            if session.err.is_terminal:
                live.update(rollout_view(seen))
            elif shown != _progress(seen):
                shown = _progress(seen)
                click.echo(f"{id_}  {shown}", err=True)
            return seen

        ended = poll(
            session, look, lambda seen: seen["state"] in AT_REST,
            again=f"shoal rollout watch {id_}", timeout_s=timeout_s, why=_progress,
        )  # fmt: skip
    session.show(ended, lambda: rollout_view(ended))
    if ended["state"] != "FINISHED":
        finished = instant(ended["finished_at"]) or "now"
        raise FailedError(
            f"rollout {id_} is {ended['state']} ({finished}): {ended['reason']}",
            f"shoal rollout show {id_} lists every device and cause",
        )
