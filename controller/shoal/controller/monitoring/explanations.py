"""What explains drift: the facts that the devices in alarm share and the others lack."""

from sqlalchemy import Connection, RowMapping, select

from shoal.controller.fleet.shared_facts import sentence, shared_facts
from shoal.controller.host.context import Context
from shoal.controller.monitoring import baseline_rows
from shoal.controller.monitoring.baseline_rows import WATCHING
from shoal.controller.monitoring.records import DriftExplanation
from shoal.controller.releases import models
from shoal.controller.store.drift_tables import drift_baseline
from shoal.controller.store.tables import device

Facts = dict[str, dict[str, str]]
_FACTS = ("site", "line", "ring", "profile", "agent")


def explain(ctx: Context, model: str, feature: str = "", release: str = "") -> DriftExplanation:
    """What the devices of a model in alarm share. feature "": alarms of any; release "": served.

    Devices that still learn are left out: nothing is decided of them. AbsentError for the model.
    """
    models.get_model(ctx, model)
    with ctx.store.read() as db:
        facts, drifting = _decided(db, model, release, feature)
    return DriftExplanation(
        model=model,
        feature=feature,
        devices=len(facts),
        drifting=len(drifting),
        sentence=sentence(facts, drifting, "drift"),
        facts=shared_facts(facts, drifting),
    )


def words_of(db: Connection, model: str, release: str, also: set[str]) -> str:
    """The sentence for an alert. also: devices whose alarm begins in this transaction."""
    facts, drifting = _decided(db, model, release, "")
    return sentence(facts, sorted({*drifting, *also}), "drift") if len(facts) > 1 else ""


def _decided(db: Connection, model: str, release: str, feature: str) -> tuple[Facts, list[str]]:
    """Facts of the devices whose baseline is learnt, and the names of those in alarm."""
    of = device.c
    query = (
        select(drift_baseline.c.drifting, drift_baseline.c.release, of.name, of.labels,
               *(of[name] for name in _FACTS))
        .join(device, device.c.name == drift_baseline.c.subject)
        .where(*baseline_rows.selected(model, release=release))
        .where(drift_baseline.c.scope == "device", drift_baseline.c.state == WATCHING)
    )  # fmt: skip
    facts: Facts = {}
    drifting = []
    for row in db.execute(query):
        facts[row.name] = _facts(row._mapping)
        if feature in row.drifting if feature else row.drifting:
            drifting.append(row.name)
    return facts, drifting


def _facts(row: RowMapping) -> dict[str, str]:
    found = {name: str(row[name]) for name in (*_FACTS, "release")}
    return found | {f"label {name}": str(value) for name, value in (row["labels"] or {}).items()}
