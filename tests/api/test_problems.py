"""Each error of the tree has one status, and its facts stand in the problem."""

import errno
import logging
from typing import Any

import pytest

from api.controller_app import ControllerApp, is_problem
from shoal import errors
from shoal.controller.fleet import devices

CASES: list[tuple[Exception, int, str]] = [
    (errors.AbsentError("device", "x"), 404, "not-found"),
    (errors.ConflictError("busy"), 409, "conflict"),
    (errors.DeniedError("no"), 403, "denied"),
    (errors.DeniedError("who", signed_in=False), 401, "denied"),
    (errors.DeniedError("slowly", retry_after_s=7), 429, "denied"),
    (errors.OversizeError("body", 2, 1), 413, "oversize-message"),
    (errors.WireError("garbled"), 400, "unreadable-message"),
    (errors.SettingError("bad"), 422, "bad-setting"),
    (errors.InputError("bad"), 422, "bad-input"),
    (errors.DatasetError("bad"), 422, "bad-dataset"),
    (errors.ModelError("bad"), 422, "unusable-model"),
    (errors.SketchError("bad"), 422, "sketch-mismatch"),
    (errors.BundleError("bad"), 422, "bad-bundle"),
    (errors.TrustError("bad"), 409, "untrusted"),
    (errors.ProvenanceError("bad"), 409, "provenance-mismatch"),
    (errors.UntrustedError("bad"), 409, "bad-signature"),
    (errors.RevokedError("bad"), 409, "revoked"),
    (errors.StaleError("bad"), 409, "stale"),
    (errors.ExpiredError("bad"), 409, "stale"),
    (errors.MisdirectedError("bad"), 409, "misdirected"),
    (errors.RefusedError("too few", "cohort-too-small"), 409, "round-refused"),
    (errors.StorageError("full"), 507, "storage"),
    (errors.LinkError("gone"), 503, "unreachable"),
    (OSError(errno.ENOSPC, "No space left on device"), 507, "storage"),
    (ZeroDivisionError("a bug with a secret in it"), 500, "internal-error"),
]


def raising(error: Exception) -> Any:
    def view(*_: Any, **__: Any) -> None:
        raise error

    return view


def test_the_table_has_every_error_of_the_tree() -> None:
    tree = {e for e in vars(errors).values() if isinstance(e, type) and e is not errors.ShoalError}
    assert {e for e in tree if issubclass(e, errors.ShoalError)} <= {type(e) for e, _, _ in CASES}


@pytest.mark.parametrize(("error", "status", "code"), CASES, ids=lambda x: getattr(x, "code", ""))
def test_each_error_is_the_problem_of_the_table(
    controller: ControllerApp,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    status: int,
    code: str,
) -> None:
    monkeypatch.setattr(devices, "get_device", raising(error))
    assert is_problem(controller.get("/api/v1/devices/x"), status, code)


def test_facts_and_hint_are_fields_of_the_problem(
    controller: ControllerApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = errors.ConflictError("it runs", "stop it first", rollout="r1", status="hidden")
    monkeypatch.setattr(devices, "get_device", raising(error))
    body = controller.get("/api/v1/devices/x").json
    assert body["detail"] == "it runs; stop it first"
    assert body["hint"] == body["mend"] == "stop it first"
    assert body["rollout"] == "r1"
    assert body["status"] == 409
    assert body["instance"] == "/api/v1/devices/x"


def test_a_bug_has_an_id_in_its_problem_and_its_traceback_in_the_log(
    controller: ControllerApp, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(devices, "get_device", raising(ZeroDivisionError("deep inside")))
    with caplog.at_level(logging.ERROR):
        response = controller.get("/api/v1/devices/x")
    assert "deep inside" not in response.text
    assert response.json["id"] in caplog.text
    assert "deep inside" in caplog.text
