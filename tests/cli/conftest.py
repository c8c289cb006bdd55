"""A real controller for the CLI: the API app on a real store, TLS on loopback, no engine."""

import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from click.testing import CliRunner, Result
from werkzeug.serving import make_server

from shoal.cli.__main__ import cli
from shoal.cli.command import Session
from shoal.controller.access.users import first_admin
from shoal.controller.app import create_app
from shoal.controller.host.context import Context
from shoal.controller.initialization import InitOptions, make_folder
from shoal.controller.operations import operations
from shoal.controller.wiring import open_context, operation_kinds


class Controller(NamedTuple):
    ctx: Context
    url: str
    password: str
    fingerprint: str


class Cli:
    """Runs `shoal ...` as one user with a HOME of its own."""

    def __init__(self, home: Path, controller: Controller) -> None:
        self.home, self.controller = home, controller
        self.environment = {"HOME": str(home)}

    def __call__(self, *arguments: str, given: str | None = None) -> Result:
        session = Session(self.environment)
        runner = CliRunner(env={"SHOAL_PASSWORD": "", "COLUMNS": "200"})
        return runner.invoke(cli, arguments, obj=session, input=given)

    def json(self, *arguments: str) -> Any:
        """The JSON that a command answers; it must succeed."""
        result = self(*arguments, "--json")
        assert result.exit_code == 0, result.output
        return msgspec.json.decode(result.stdout)

    def login(self, **more: str) -> Result:
        options = {"user": "admin", "password": self.controller.password} | more
        flat = [text for name, value in options.items() for text in (f"--{name}", value)]
        return self("login", self.controller.url, "--yes", *flat)

    def work(self, ident: str) -> None:
        """Do an operation, as the engine would have it done."""
        ctx = self.controller.ctx
        while operations.claim_next(ctx).id != ident:
            pass  # what other tests left waiting
        operations.run(ctx, ident, operation_kinds())


@pytest.fixture(scope="module")
def controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controller]:
    from shoal.controller.fleet.io.ca import Authority

    folder = tmp_path_factory.mktemp("controller")
    make_folder(folder, InitOptions(), time.time())
    ctx = open_context(folder)
    password = first_admin(ctx)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(folder / "pki" / "server.crt", folder / "pki" / "server.key")
    server = make_server("127.0.0.1", 0, create_app(ctx), threaded=True, ssl_context=tls)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    fingerprint = Authority.open(folder / "pki").root_fingerprint
    yield Controller(ctx, f"https://localhost:{server.server_port}", password, fingerprint)
    server.shutdown()
    thread.join()


@pytest.fixture
def stranger(tmp_path: Path, controller: Controller) -> Cli:
    """Somebody who has not signed in."""
    return Cli(tmp_path / "home", controller)


@pytest.fixture
def shoal(stranger: Cli) -> Cli:
    """Somebody who has, as admin."""
    result = stranger.login()
    assert result.exit_code == 0, result.output
    return stranger


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A small table: two features, a label, a site."""
    lines = ["a,b,defect,plant"]
    lines += [f"{i % 7},{i % 5 + (i % 2) * 9},{i % 2},{'ns'[i % 3 == 0]}" for i in range(120)]
    path = tmp_path / "parts.csv"
    path.write_text("\n".join(lines) + "\n")
    return path
