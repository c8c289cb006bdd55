"""A request that is sent twice with the same Idempotency-Key is done once."""

import threading

from api.controller_app import ControllerApp, is_problem
from shoal.controller.access import idempotency
from shoal.controller.api.dispatch import IDEMPOTENCY_KEY, REPLAYED
from shoal.controller.fleet import join_tokens
from shoal.controller.store.tables import join_token

PATH, BODY = "/api/v1/join-tokens", {"site": "north"}


def tokens(controller: ControllerApp) -> int:
    return len(controller.get(PATH).json["items"])


def test_a_repeated_request_gets_the_first_response_without_its_secret(
    controller: ControllerApp,
) -> None:
    first = controller.post(PATH, json=BODY, headers={IDEMPOTENCY_KEY: "k1"})
    second = controller.post(PATH, json=BODY, headers={IDEMPOTENCY_KEY: "k1"})
    assert first.status_code == second.status_code == 201
    assert REPLAYED not in first.headers
    assert second.headers[REPLAYED] == "true"
    assert first.json["secret"]
    assert second.json == first.json | {"secret": ""}
    assert tokens(controller) == 1


def test_the_kept_answer_holds_no_secret(controller: ControllerApp) -> None:
    secret = controller.post(PATH, json=BODY, headers={IDEMPOTENCY_KEY: "k1"}).json["secret"]
    with controller.ctx.store.read() as db:
        kept = db.exec_driver_sql("select * from idempotency").all()
        assert len(kept) == 1
        assert secret.split(".")[2] not in str(kept)
        assert db.execute(join_token.select()).one().secret_hash


def test_another_body_or_another_asker_is_another_request(controller: ControllerApp) -> None:
    controller.post(PATH, json=BODY, headers={IDEMPOTENCY_KEY: "k1"})
    other = controller.post(PATH, json={"site": "south"}, headers={IDEMPOTENCY_KEY: "k1"})
    assert is_problem(other, 409, "conflict")
    assert (
        controller.post(PATH, "operator", json=BODY, headers={IDEMPOTENCY_KEY: "k1"}).status_code
        == 201
    )
    assert tokens(controller) == 2


def test_a_failed_request_may_be_sent_again(controller: ControllerApp) -> None:
    bad = {"site": "north", "uses": 0}
    assert is_problem(controller.post(PATH, json=bad, headers={IDEMPOTENCY_KEY: "k1"}), 422)
    assert controller.post(PATH, json=BODY, headers={IDEMPOTENCY_KEY: "k1"}).status_code == 201


def test_while_the_first_is_at_work_the_second_waits_outside(
    controller: ControllerApp, monkeypatch
) -> None:  # type: ignore[no-untyped-def]
    inside, go_on = threading.Event(), threading.Event()
    real = join_tokens.create_join_token

    def slow(*args, **kwargs):  # type: ignore[no-untyped-def]
        inside.set()
        assert go_on.wait(10)
        return real(*args, **kwargs)

    bearer = controller.bearer("admin")
    monkeypatch.setattr(join_tokens, "create_join_token", slow)
    headers = bearer | {IDEMPOTENCY_KEY: "k1"}
    first = threading.Thread(
        target=lambda: controller.app.test_client().post(PATH, json=BODY, headers=headers)
    )
    first.start()
    assert inside.wait(10)
    assert is_problem(controller.post(PATH, json=BODY, headers={IDEMPOTENCY_KEY: "k1"}), 409)
    go_on.set()
    first.join()
    assert (
        controller.post(PATH, json=BODY, headers={IDEMPOTENCY_KEY: "k1"}).headers[REPLAYED]
        == "true"
    )
    assert tokens(controller) == 1


def test_a_request_whose_process_died_may_be_sent_again_soon(controller: ControllerApp) -> None:
    assert idempotency.begin(controller.ctx, "k", "h") is None
    controller.clock.now += idempotency.ABANDONED_S + 1
    assert idempotency.begin(controller.ctx, "k", "h") is None


def test_a_key_of_unreasonable_length_is_refused(controller: ControllerApp) -> None:
    assert is_problem(controller.post(PATH, json=BODY, headers={IDEMPOTENCY_KEY: "k" * 300}), 422)
