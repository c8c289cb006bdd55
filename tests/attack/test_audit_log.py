"""Attacks on the audit log: edited, removed, cut, written anew; found offline, elsewhere."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from api.controller_app import ControllerApp, is_problem
from shoal.audit_chain import entry_hash
from shoal.cli import audit_file
from shoal.controller.access import audit
from shoal.errors import SettingError, ShoalError, TrustError, UntrustedError

Entries = list[dict[str, Any]]


class Exported(NamedTuple):
    lines: Entries
    early: Path
    late: Path


@pytest.fixture(scope="module")
def exported(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """An export of twelve entries, a head that was kept at the eighth, and one of another root."""
    folder = tmp_path_factory.mktemp("audit")
    controller = ControllerApp(template, folder / "controller")
    heads = []
    for more in ("early", "late"):
        for i in range(4):
            with controller.ctx.store.write() as db:
                audit.record(db, controller.ctx, "ana", "device.hold", f"{more}-{i}", reason="x")
        controller.ctx.signer.renew_timestamp(controller.clock.now)
        path = folder / f"{more}.json"
        path.write_bytes(controller.get("/api/v1/audit/head").data)
        heads.append(path)
    text = controller.get("/api/v1/audit/export").text
    controller.ctx.store.close()
    return Exported([json.loads(line) for line in text.splitlines()], *heads)


def write(tmp_path: Path, lines: Entries) -> Path:
    path = tmp_path / "audit.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def rewritten(lines: Entries) -> Entries:
    """The whole chain hashed anew, as who has the database can."""
    before, found = "", []
    for line in lines[:-1]:
        before = entry_hash(before, line)
        found.append(line | {"hash": before})
    return [*found, lines[-1]]


def edit(lines: Entries) -> Entries:
    return [line | {"actor": "eve"} if line.get("id") == 6 else line for line in lines]


def hide_address(lines: Entries) -> Entries:
    return [line | {"address": "10.9.9.9"} if line.get("id") == 7 else line for line in lines]


def remove(lines: Entries) -> Entries:
    return [line for line in lines if line.get("id") not in (5, 6)]


def renumber(lines: Entries) -> Entries:
    kept = [line for line in lines if line.get("id") != 5]
    return [line | {"id": i + 1} if "id" in line else line for i, line in enumerate(kept)]


def cut_tail(lines: Entries) -> Entries:
    return [*lines[:-3], lines[-1]]


def cut_head(lines: Entries) -> Entries:
    return lines[2:]


def swap(lines: Entries) -> Entries:
    return [*lines[:3], lines[4], lines[3], *lines[5:]]


def write_anew(lines: Entries) -> Entries:
    return rewritten(edit(lines))


def unsigned_tail(lines: Entries) -> Entries:
    """One more entry, rightly chained, that the signed head does not cover."""
    last = lines[-2]
    more = last | {"id": last["id"] + 1, "actor": "eve"}
    return [*lines[:-1], more | {"hash": entry_hash(last["hash"], more)}, lines[-1]]


def cut_the_signature(lines: Entries) -> Entries:
    return lines[:-2]


def sign_another_head(lines: Entries) -> Entries:
    forged = json.loads(json.dumps(lines[-1]))
    forged["signed"]["timestamp"]["signed"]["shoal"]["audit"]["id"] = 3
    return [*lines[:3], forged]


ATTACKS: list[tuple[Callable[[Entries], Entries], type[ShoalError], str]] = [
    (edit, TrustError, "entry 6 was changed"),
    (hide_address, TrustError, "entry 7 was changed"),
    (remove, TrustError, "entries 5 to 6 are missing"),
    (renumber, TrustError, "entry 5 was changed"),
    (cut_tail, TrustError, "are missing at the end"),
    (cut_head, TrustError, "entries 1 to 2 are missing"),
    (swap, TrustError, "entry 4 is missing"),
    (write_anew, TrustError, "was written anew"),
    (unsigned_tail, TrustError, "not signed"),
    (cut_the_signature, SettingError, "no signed head"),
    (sign_another_head, UntrustedError, "signed head in"),
]


@pytest.mark.parametrize(
    ("attack", "error", "said"), ATTACKS, ids=lambda v: getattr(v, "__name__", "")
)
def test_what_was_done_to_an_export_is_named(
    exported: Exported, tmp_path: Path, attack: Any, error: type[ShoalError], said: str
) -> None:
    path = write(tmp_path, attack(exported.lines))
    with pytest.raises(error, match=said):
        audit_file.verify(path, [], None)


def test_a_whole_export_is_proved_against_heads_that_were_kept_elsewhere(
    exported: Exported, tmp_path: Path
) -> None:
    path = write(tmp_path, exported.lines)
    found = audit_file.verify(path, [exported.early, exported.late], None)
    assert found["entries"] == len(exported.lines) - 1


def test_who_owns_the_controller_cannot_rewrite_what_was_signed_before(
    exported: Exported, template: Path, tmp_path: Path
) -> None:
    """The thief signs a log of their own with the right keys; a head kept elsewhere tells."""
    thief = ControllerApp(template, tmp_path / "controller")
    for i in range(8):
        with thief.ctx.store.write() as db:
            audit.record(db, thief.ctx, "ana", "device.hold", f"nothing-{i}")
    path = tmp_path / "audit.jsonl"
    path.write_bytes(thief.get("/api/v1/audit/export").data)
    thief.ctx.store.close()
    audit_file.verify(path, [], None)
    with pytest.raises(TrustError, match="was written anew"):
        audit_file.verify(path, [exported.early], None)


def test_another_controllers_signature_is_not_believed(exported: Exported, tmp_path: Path) -> None:
    from shoal.controller.releases.io.signing import Signer

    other = Signer.create(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "repository" / "metadata" / "1.root.json", tmp_path / "root")
    assert other.root
    with pytest.raises(UntrustedError):
        audit_file.verify(write(tmp_path, exported.lines), [], tmp_path / "root")


def test_the_log_tells_only_admins_where_others_work_from(controller: ControllerApp) -> None:
    controller.sign_in("admin", "wrong")
    controller.sign_in("viewer", "wrong")
    entries = controller.get("/api/v1/audit?verb=user.*", "viewer").json["items"]
    assert {e["actor"] for e in entries} == {"viewer"}
    assert is_problem(controller.get("/api/v1/audit/export", "approver"), 403)
