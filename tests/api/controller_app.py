"""A new controller with its API in process, and one user of each role."""

import random
import shutil
import time
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flask import Flask
from flask.testing import FlaskClient

import compiled_routes
from shoal.controller.access import roles, tokens, users
from shoal.controller.access.roles import Actor
from shoal.controller.app import create_app
from shoal.controller.host.context import Context
from shoal.controller.initialization import InitOptions, make_folder
from shoal.controller.wiring import open_context

compiled_routes.keep()
PASSWORD = "correct horse battery"
ORIGIN = "https://localhost"


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = float(int(time.time()))

    def __call__(self) -> float:
        return self.now


def open_folder(folder: Path, clock: Any) -> Context:
    return open_context(folder)._replace(clock=clock, random=random.Random(7))


def make_template(folder: Path) -> Path:
    """A folder made by `shoal-controller init`, with one user of each role, named after it."""
    make_folder(folder, InitOptions(), time.time())
    ctx = open_folder(folder, time.time)
    for role in roles.ROLES:
        users.add_user(ctx, actor="test", name=role, role=role, password=PASSWORD)
    ctx.store.close()
    return folder


class ControllerApp:
    """ctx, app and a client on a copy of the template."""

    def __init__(self, template: Path, folder: Path) -> None:
        shutil.copytree(template, folder, dirs_exist_ok=True)
        self.clock = Clock()
        self.ctx = open_folder(folder, self.clock)
        self.app: Flask = create_app(self.ctx)
        self.client: FlaskClient = self.app.test_client()
        self._bearers: dict[str, dict[str, str]] = {}

    def bearer(self, role: str) -> dict[str, str]:
        """Authorization header of the user with this role; none for ""."""
        if not role:
            return {}
        if role not in self._bearers:
            made = tokens.create_token(self.ctx, actor=Actor(role, role, "test", ""), name="test")
            self._bearers[role] = {"Authorization": f"Bearer {made.secret}"}
        return self._bearers[role]

    def request(self, method: str, path: str, role: str = "admin", **more: Any) -> Any:
        """One request with the token of `role`."""
        headers = {**self.bearer(role), **more.pop("headers", {})}
        return self.client.open(path, method=method, headers=headers, **more)

    def get(self, path: str, role: str = "admin", **more: Any) -> Any:
        return self.request("GET", path, role, **more)

    def post(self, path: str, role: str = "admin", **more: Any) -> Any:
        return self.request("POST", path, role, **more)

    def sign_in(self, name: str = "admin", password: str = PASSWORD, **more: Any) -> Any:
        """Sign in like a browser; the client keeps the cookie."""
        body = {"user": name, "password": password}
        more.setdefault("headers", {"Sec-Fetch-Site": "same-origin"})
        return self.client.post("/api/v1/session", json=body, base_url=ORIGIN, **more)

    def join_token(self, **fields: Any) -> str:
        """A join token's secret."""
        body = {"site": "north", "rings": ["stable", "canary"], **fields}
        return str(self.post("/api/v1/join-tokens", json=body).json["secret"])

    def enrol(self, device: str, token: str, **more: Any) -> Any:
        """Enrol a device with a new key."""
        body = {"token": token, "csr": make_request(), "device": device, **more}
        return self.client.post("/api/v1/enrol", json=body)


def make_request(key: ec.EllipticCurvePrivateKey | None = None) -> str:
    """A certificate request, PEM; without a key, of a new one."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def is_problem(response: Any, status: int, code: str = "") -> bool:
    """Check that a response is the expected problem."""
    body = response.get_json(force=True)
    assert response.status_code == status, (response.status_code, body)
    assert response.content_type == "application/problem+json"
    assert body["status"] == status
    assert body["title"]
    assert body["detail"]
    assert body["type"].startswith("https://shoal.dev/problems/")
    assert not code or body["type"].endswith(f"/{code}"), body
    return True
