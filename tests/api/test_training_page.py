"""The console's form for a training, without a browser; and who may train with a script."""

import io
from typing import Any

import msgspec
import pytest

from api.controller_app import ORIGIN, ControllerApp
from controllers import add_digits
from shoal import estimators
from shoal.controller.operations import operations
from shoal.controller.wiring import operation_kinds


def send(controller: ControllerApp, **fields: str) -> Any:
    form = {"model": "mine", "dataset": "stations"} | fields
    headers = {"Sec-Fetch-Site": "same-origin"}
    return controller.client.post("/train", data=form, base_url=ORIGIN, headers=headers)


def test_the_form_lists_every_estimator_with_its_parameters(controller: ControllerApp) -> None:
    controller.sign_in("viewer")
    shown = controller.client.get("/train", base_url=ORIGIN).get_data(as_text=True)
    for one in estimators.list_estimators():
        assert f"<h2>{one.name}</h2>" in shown
        assert all(parameter.example in shown for parameter in one.parameters)
    assert "Operators train models" in shown
    assert send(controller).status_code == 403


def test_a_training_starts_from_the_form(controller: ControllerApp) -> None:
    controller.sign_in()
    add_digits(controller.ctx)
    answer = send(controller, estimator="mlp", params="hidden = 32,16\n\nmax_iter=50\n")
    assert answer.status_code == 303, answer.get_data(as_text=True)
    [one] = operations.list_operations(controller.ctx)
    assert (one.kind, one.subject) == ("train", "mine")
    assert one.params["params"] == {"hidden": [32, 16], "max_iter": 50}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"params": "hidden"}, "one NAME=VALUE a line"),
        ({"estimator": "random-forest", "params": "trees=0"}, "trees"),
        ({"estimator": "imported"}, "shoal model import"),
        ({"dataset": "nothing"}, "nothing"),
    ],
)
def test_a_form_that_makes_no_sense_is_answered_with_the_reason(
    controller: ControllerApp, fields: dict[str, str], words: str
) -> None:
    controller.sign_in()
    add_digits(controller.ctx)
    answer = send(controller, **fields)
    assert answer.status_code in (404, 422)
    assert words in answer.get_data(as_text=True)
    assert operations.list_operations(controller.ctx) == []


def script(controller: ControllerApp, role: str) -> Any:
    add_digits(controller.ctx)
    form = {"dataset": "stations", "script": (io.BytesIO(b"print(1)"), "fit.py"), "params": "{}"}
    return controller.post("/api/v1/models/mine/script", role, data=form)


@pytest.mark.parametrize(
    ("setting", "role", "status"),
    [
        ("none", "admin", 403), ("admin", "approver", 403), ("admin", "admin", 202),
        ("approver", "operator", 403), ("operator", "operator", 202), ("operator", "viewer", 403),
    ],
)  # fmt: skip
def test_a_script_is_taken_of_the_roles_that_the_setting_names_and_of_no_other(
    controller: ControllerApp, setting: str, role: str, status: int
) -> None:
    msgspec.structs.force_setattr(controller.ctx.settings.operations, "scripts", setting)
    answer = script(controller, role)
    assert answer.status_code == status, answer.get_data(as_text=True)
    assert len(operations.list_operations(controller.ctx)) == (status == 202)


def test_a_script_cannot_be_named_by_its_hash_past_the_setting(controller: ControllerApp) -> None:
    add_digits(controller.ctx)
    sha256 = controller.ctx.blobs.put_bytes(b"print(1)").sha256
    for more in ({"script": sha256}, {"params": {"script": sha256}}, {}):
        body = {"dataset": "stations", "estimator": "script", **more}
        answer = controller.post("/api/v1/models/mine/train", "admin", json=body)
        assert answer.status_code in (400, 422), answer.get_data(as_text=True)
    assert operations.list_operations(controller.ctx) == []


def test_a_script_that_was_queued_does_not_run_once_scripts_are_switched_off(
    controller: ControllerApp,
) -> None:
    ctx = controller.ctx
    msgspec.structs.force_setattr(ctx.settings.operations, "scripts", "admin")
    ident = msgspec.json.decode(script(controller, "admin").data)["id"]
    msgspec.structs.force_setattr(ctx.settings.operations, "scripts", "none")
    operations.claim_next(ctx)
    ended = operations.run(ctx, ident, operation_kinds())
    assert "switched off" in ended.error


def test_the_form_offers_a_script_to_those_who_may_and_shows_what_it_prints(
    controller: ControllerApp,
) -> None:
    def shown(path: str) -> str:
        return str(controller.client.get(path, base_url=ORIGIN).get_data(as_text=True))

    controller.sign_in()
    add_digits(controller.ctx)
    assert 'name="script"' not in shown("/train")
    msgspec.structs.force_setattr(controller.ctx.settings.operations, "scripts", "operator")
    assert 'name="script"' in shown("/train")
    form = {
        "model": "mine", "dataset": "stations", "params": "depth=3", "entry": "fit",
        "script": (io.BytesIO(b"def fit(folder): pass"), "fit.py"),
    }  # fmt: skip
    headers = {"Sec-Fetch-Site": "same-origin"}
    answer = controller.client.post("/train", data=form, base_url=ORIGIN, headers=headers)
    assert answer.status_code == 303, answer.get_data(as_text=True)
    [one] = operations.list_operations(controller.ctx)
    assert one.params["params"]["values"] == {"depth": 3}
    log = operations.log_path(controller.ctx, one.id)
    log.parent.mkdir(exist_ok=True)
    log.write_text("epoch <1> done")
    assert "epoch &lt;1&gt; done" in shown(f"/operations/{one.id}")
