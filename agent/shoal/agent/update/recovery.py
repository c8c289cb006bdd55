"""Slots of a lost journal: only what signed metadata beside the files proves serves again."""

import msgspec

from shoal.agent.installed.record import Slot
from shoal.agent.update.ports import UpdatePorts
from shoal.errors import MisdirectedError, ShoalError
from shoal.trust import RINGS, target_path


def recover(
    found: Slot, ports: UpdatePorts, profile: str, ring: str
) -> tuple[Slot | None, list[str]]:
    """The slot to serve again of what the link points at, or the one before; why others are not.

    found   the record of the slot that the link points at, which nobody has signed
    """
    other = ports.slots.record(found.model, "a" if found.slot == "b" else "b")
    faults = []
    for slot in (found, other):
        # A slot that served later than the one at the link failed its trial.
        if slot is None or (slot is other and other.since_s > found.since_s):
            continue
        try:
            proven = _prove(slot, ports, profile, ring)
            ports.slots.verify(proven, profile)
        except ShoalError as error:
            faults.append(f"{slot.model} in slot {slot.slot}: {error}; it is fetched again")
        else:
            return proven, faults
    return None, faults


def _prove(slot: Slot, ports: UpdatePorts, profile: str, ring: str) -> Slot:
    """The slot's record by what was signed; of its own it keeps what cannot do harm."""
    listed = ports.images.prove(ports.slots.proof(slot.model, slot.slot))
    manifest = ports.slots.proven(slot.model, slot.slot, listed.sha256, listed.length)
    role = listed.path.partition("/")[0]
    path = target_path(role, slot.model, manifest.version)
    if (manifest.model, listed.path) != (slot.model, path):
        raise MisdirectedError(f"it holds {manifest.release}, signed as {listed.path}")
    if role not in RINGS.get(ring, frozenset()):
        raise MisdirectedError(f"{manifest.release} is signed as {role}, ring {ring!r} refuses it")
    manifest.files_for(profile)  # raises where the release is not for this profile
    names = manifest.profiles[profile]
    variant = manifest.variant(slot.variant if slot.variant in names else names[0])
    return msgspec.structs.replace(
        slot,
        release=manifest.release,
        path=listed.path,
        sha256=listed.sha256,
        variant=variant.name,
        model_sha256=variant.file.sha256,
        counter=max(manifest.release_counter, listed.epoch),
    )
