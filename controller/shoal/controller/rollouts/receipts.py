"""Receipts of behaviour gates: every look computed again from its inputs, and under other gates.

An export holds the inputs as the JSON text that was hashed, so that nothing else is needed: no
database, no network, no clock. Figures are kept to six digits, which is what makes them the same on
every processor.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import TypeVar

import msgspec

from shoal.controller.rollouts import behaviour
from shoal.controller.rollouts.behaviour_records import (
    BehaviourGate,
    Evidence,
    HourCounts,
    Panel,
    Receipt,
)
from shoal.controller.store.records import Record
from shoal.errors import InputError

_T = TypeVar("_T")


class KeptLook(Record, frozen=True, kw_only=True):
    """One look: what it found, and its receipt."""

    evidence: Evidence
    receipt: Receipt


class ReceiptExport(Record, frozen=True, kw_only=True):
    """Receipts of a rollout, in order of time, and their inputs. inputs: SHA-256 -> JSON text."""

    rollout: str
    release: str
    looks: list[KeptLook]
    inputs: dict[str, str]


class Counterfactual(Record, frozen=True, kw_only=True):
    """What a rollout would have done under other gates.

    outcome   "FAILED", "PASSED", or "UNDECIDED": of its looks; stage, at: of the one that decided
    devices   of stages that would have begun; of: of those that did
    why       of the look that decided, or of the last one
    looks     looks computed again
    """

    outcome: str
    stage: str
    at: float
    devices: int
    of: int
    why: str
    looks: int


def read_export(data: bytes) -> ReceiptExport:
    """An export from its JSON; InputError for anything else."""
    try:
        return msgspec.json.decode(data, type=ReceiptExport)
    except msgspec.MsgspecError as error:
        hint = "write one with: shoal rollout receipts ID --out FILE"
        raise InputError(f"not an export of receipts: {error}", hint) from error


def differences(export: ReceiptExport) -> list[str]:
    """What does not hold, a sentence each: changed inputs by name, verdicts that differ.

    [] if every look computes to the same bytes.
    """
    found = [
        f"{_name(export, name)} has changed: its SHA-256 is not {name}"
        for name, text in export.inputs.items()
        if hashlib.sha256(text.encode()).hexdigest() != name
    ]
    for look in export.looks:
        seen, receipt = look.evidence, look.receipt
        where = f"the look at {seen.at:.0f} of stage {seen.stage}"
        missing = [one for one in (receipt.panel, *receipt.hours) if one not in export.inputs]
        if missing:
            found.append(f"{where}: its input {missing[0]} is not in the export")
            continue
        if receipt.formula != behaviour.FORMULA:
            found.append(f"{where}: needs formula {receipt.formula}, this is {behaviour.FORMULA}")
            continue
        again = _judge(export.inputs, look, receipt.gates)
        if msgspec.json.encode(again) != msgspec.json.encode(seen):
            found.append(
                f"{where}: the verdict is {seen.outcome} ({seen.why}), "
                f"computed again it is {again.outcome} ({again.why})"
            )
    return found


def under_gates(
    export: ReceiptExport, gates: Sequence[BehaviourGate], stages: Mapping[str, int], reached: int
) -> Counterfactual:
    """The rollout under other gates, look by look, until one would have stopped it.

    stages   name -> devices, in order; reached: devices of stages that began
    """
    decided: dict[str, str] = {}
    again = Evidence(stage="", at=0.0, outcome="WAIT", why="it has no looks", metrics=[])
    for number, look in enumerate(export.looks, 1):
        again = _judge(export.inputs, look, gates)
        decided[again.stage] = again.outcome
        if again.outcome == "FAILED":
            names = list(stages)
            until = sum(stages[name] for name in names[: names.index(again.stage) + 1])
            return Counterfactual(
                outcome="FAILED", stage=again.stage, at=again.at, devices=min(until, reached),
                of=reached, why=again.why, looks=number,
            )  # fmt: skip
    passed = bool(decided) and set(decided.values()) == {"PASSED"}
    return Counterfactual(
        outcome="PASSED" if passed else "UNDECIDED", stage=again.stage, at=again.at,
        devices=reached, of=reached, why=again.why, looks=len(export.looks),
    )  # fmt: skip


def _judge(inputs: Mapping[str, str], look: KeptLook, gates: Sequence[BehaviourGate]) -> Evidence:
    seen, receipt = look.evidence, look.receipt
    return behaviour.judge(
        seen.stage, seen.at, _input(inputs, receipt.panel, Panel),
        [_input(inputs, name, HourCounts) for name in receipt.hours], gates,
        running=receipt.running, expired=receipt.expired,
    )  # fmt: skip


def _input(inputs: Mapping[str, str], name: str, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(inputs[name], type=kind)
    except msgspec.MsgspecError as error:
        raise InputError(f"input {name} cannot be read: {error}", "export it again") from error


def _name(export: ReceiptExport, name: str) -> str:
    """What an input is, for a person."""
    for look in export.looks:
        if look.receipt.panel == name:
            return f"the panel of stage {look.evidence.stage}"
        if name in look.receipt.hours:
            hour = look.receipt.hours.index(name) + 1
            return f"hour {hour} of stage {look.evidence.stage}"
    return f"input {name}"
