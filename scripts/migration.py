"""Generate a migration from store/tables.py: scripts/migration.py 0002 "what and why"."""

import sys

from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine

from shoal.controller.store.io import database

revision, message = sys.argv[1:]
with create_engine("sqlite://").begin() as db:
    if revision != "0001":
        database.migrate(db)
    config = Config(attributes={"connection": db})
    config.set_main_option("script_location", str(database._MIGRATIONS))
    config.set_main_option("file_template", "m%%(rev)s_%%(slug)s")
    command.revision(config, message, autogenerate=True, rev_id=revision)
