"""Modules imported to open a database: sqlite-utils, and little else."""

import subprocess
import sys
from pathlib import Path

OPEN = """
import sys
from pathlib import Path
from shoal.agent.host.io.database import open_database
db = open_database(Path(sys.argv[1]))
db.table("row").create({"at": int, "text": str}, pk="at")
db.execute("INSERT INTO row VALUES (1, 'a')")
print(db.execute("SELECT text FROM row").fetchone()[0])
import sqlite_utils.plugins
print(*{"pandas", "dateutil"} & set(sys.modules), *sqlite_utils.plugins.pm.list_plugin_distinfo())
from sqlite_utils import recipes
print(recipes.__name__)
"""


def test_a_database_imports_no_pandas_no_dateutil_and_no_foreign_plugins(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", OPEN, str(tmp_path / "rows.db")], capture_output=True, text=True
    )
    assert run.stdout.splitlines() == ["a", "", "sqlite_utils.recipes"], run.stderr
