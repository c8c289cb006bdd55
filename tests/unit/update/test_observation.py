"""What the agent saw of a release on trial and what sessions saw is judged together."""

import pytest

from shoal.agent.installed.record import Slot
from shoal.agent.serving.session_reports import SessionReport
from shoal.agent.serving.window import Vitals
from shoal.agent.update.acceptance import Watch, judge_all

TRIAL = Slot(
    slot="b", model="m", release="m@2", path="release/m/2/manifest.json", sha256="2" * 64,
    variant="fp32", model_sha256="0" * 64, counter=1,
)  # fmt: skip
WATCH = Watch(since_s=0.0, until_s=60.0, before=Vitals(requests=100, rows=100))
GOOD, BAD = Vitals(requests=60, rows=60), Vitals(requests=60, errors=40, rows=20)
FAILED = Vitals(requests=600, errors=500, rows=100)
SLOW, ODD = Vitals(requests=60, slow=40, rows=60), Vitals(requests=60, rows=60, odd=30)


def of(**fields: object) -> SessionReport:
    return SessionReport(**{"model": "m", "sha256": TRIAL.sha256, **fields})


DEAD = of(lives=False)
CASES = [
    ("nobody has a session", [], 5.0, None),
    ("a session sees nothing wrong", [of(vitals=GOOD)], 5.0, None),
    ("nor at the end", [of(vitals=GOOD)], 60.0, ""),
    ("requests fail in one", [of(vitals=GOOD), of(vitals=BAD)], 5.0, "unhealthy"),
    ("requests are slow in one", [of(vitals=SLOW)], 5.0, "too-slow"),
    ("answers are no numbers in one", [of(vitals=ODD)], 5.0, "unhealthy"),
    ("they failed there before", [of(vitals=BAD, before=FAILED)], 60.0, ""),
    ("it still serves what was before", [of(vitals=BAD, sha256="1" * 64)], 60.0, ""),
    ("it is another model's", [of(vitals=BAD, model="n")], 60.0, ""),
    ("it cannot load the trial", [of(sha256="1", refused=TRIAL.sha256)], 5.0, "unhealthy"),
    ("it could not load another one", [of(refused="3" * 64)], 5.0, None),
    ("a program crashed twice", [DEAD, DEAD], 5.0, None),
    ("it crashed three times", [DEAD, DEAD, DEAD], 5.0, "crash-loop"),
    ("crashes of what was before", [of(lives=False, sha256="1" * 64)] * 3, 5.0, None),
]


@pytest.mark.parametrize(("case", "said", "now_s", "cause"), CASES, ids=[c[0] for c in CASES])
def test_session_reports_are_judged(
    case: str, said: list[SessionReport], now_s: float, cause: str | None
) -> None:
    verdict = judge_all(WATCH, Vitals(), said, TRIAL, now_s)
    assert (verdict.cause if verdict else None) == cause


def test_what_a_session_saw_is_in_the_facts() -> None:
    verdict = judge_all(WATCH, Vitals(requests=5, rows=5), [of(vitals=GOOD)], TRIAL, 60.0)
    assert verdict is not None
    assert verdict.facts["requests"] == 65
