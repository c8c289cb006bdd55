"""The counts of rollouts that began before there were counts."""

import json
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, create_engine, text

from shoal.controller.store.io.database import Store, migrate

STATES = {
    "d-1": ("SUCCEEDED", {"disagree": 0.25, "compared": 40, "assigned_at": 7.0}),
    "d-2": ("SUCCEEDED", {"assigned_at": 8.0}),
    "d-3": ("WAITING", {}),
}


def insert(db: Connection, table: str, **values: Any) -> None:
    names = ", ".join(values)
    marks = ", ".join(f":{name}" for name in values)
    db.execute(text(f"INSERT INTO {table} ({names}) VALUES ({marks})"), values)


def test_a_database_from_before_gets_the_counts_and_times_of_its_rollouts(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'controller.db'}"
    with create_engine(url).begin() as db:
        migrate(db, "0011")
        for ident, state in (("r-1", "RUNNING"), ("r-2", "ROLLED_BACK")):
            insert(db, "rollout", id=ident, plan="{}", stages="[]", state=state)
        for name, (state, facts) in STATES.items():
            insert(db, "rollout_device", rollout="r-1", device=name, stage="all", state=state,
                   facts=json.dumps(facts))  # fmt: skip
    with Store.open(url).read() as db:
        counts = db.execute(text("SELECT * FROM rollout_count ORDER BY state")).all()
        ordered = db.execute(text("SELECT ordered_at FROM rollout_device ORDER BY device"))
        cursors = dict(db.execute(text("SELECT id, cursor FROM rollout")).all())
        assert [tuple(row) for row in counts] == [
            ("r-1", "all", "SUCCEEDED", 2, 1, 40, 10),
            ("r-1", "all", "WAITING", 1, 0, 0, 0),
        ]
        assert [row.ordered_at for row in ordered] == [7.0, 8.0, 0.0]
        assert cursors == {"r-1": "", "r-2": "~"}
