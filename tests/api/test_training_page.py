"""The console's form for a training, without a browser."""

from typing import Any

import pytest

from api.controller_app import ORIGIN, ControllerApp
from controllers import add_digits
from shoal import estimators
from shoal.controller.operations import operations


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
