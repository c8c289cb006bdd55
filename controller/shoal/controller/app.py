"""Flask application of the web process: API and console."""

import functools
import importlib.metadata
import importlib.util
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

import msgspec
from flask import Flask, g, request
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response

from shoal.controller.access.login_attempts import Attempts
from shoal.controller.api import (
    compression,
    dispatch,
    openapi,
    problems,
    proxies,
    registry,
    request_parsing,
    security,
)
from shoal.controller.api.metrics import HttpMetrics
from shoal.controller.api.routing import BODY_LIMIT, AppServices
from shoal.controller.api.stream import Streams
from shoal.controller.data.io import packing
from shoal.controller.data.io.masking_keys import MaskingKeys
from shoal.controller.fleet.io.ca import Authority
from shoal.controller.host.context import Context
from shoal.controller.host.io.metrics_file import read_metrics
from shoal.controller.mlflow.io.server import Server
from shoal.controller.training.io import inspection
from shoal.controller.web import screen, views
from shoal.errors import ConflictError

P = ParamSpec("P")
T = TypeVar("T")
#: Uploaded models, and datasets, that are read or wait for it; the API has sixteen threads.
READING = 4


def create_app(ctx: Context) -> Flask:
    """Build the application; SettingError when the device CA cannot be opened."""
    routes = registry.all_routes()
    services = AppServices(
        authority=Authority.open(ctx.folder / "pki"),
        attempts=Attempts(),
        metrics=HttpMetrics(partial(read_metrics, ctx.folder)),
        streams=Streams(time.sleep),
        document=_document,
        read_facts=_one_at_a_time(inspection.read_facts),
        pack_items=_one_at_a_time(packing.pack_items),
        masking_keys=MaskingKeys(ctx.folder),
        mlflow=Server(ctx.settings.mlflow, ctx.folder),
    )
    app = Flask(__name__, static_folder=None, template_folder=None)
    app.request_class = request_parsing.SpooledRequest
    app.config["MAX_CONTENT_LENGTH"] = BODY_LIMIT
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.extensions |= {"shoal": ctx, "shoal-services": services}
    app.wsgi_app = proxies.ForwardedHeaders(  # type: ignore[assignment, method-assign]
        app.wsgi_app, ctx.settings.network.trusted_proxies
    )
    request_parsing.clear_uploads(ctx.folder)
    _measure(app, services.metrics)
    compression.install(app)
    security.install(app, ctx)
    problems.install(app)
    app.register_error_handler(404, _not_found)
    app.register_blueprint(dispatch.blueprint(routes))
    app.register_blueprint(views.blueprint)
    return app


@functools.cache
def _document() -> bytes:
    """The OpenAPI document, when it is first asked for."""
    document = openapi.document(registry.all_routes(), importlib.metadata.version("shoal"))
    return msgspec.json.encode(document)


def _one_at_a_time(read: Callable[P, T]) -> Callable[P, T]:
    """The same, for one file at a time: each may take the memory that its limits allow.

    ConflictError when READING files are read or wait: slow ones would hold every thread of the API.
    """
    lock, places = threading.Lock(), threading.BoundedSemaphore(READING)

    def read_alone(*args: P.args, **more: P.kwargs) -> T:
        if not places.acquire(blocking=False):
            raise ConflictError(f"{READING} files are being read", "try again in a few seconds")
        try:
            with lock:
                return read(*args, **more)
        finally:
            places.release()

    return read_alone


def _not_found(error: HTTPException) -> Response:
    return screen.not_found() if screen.wants_html() else problems.of_http(error)


def _measure(app: Flask, metrics: HttpMetrics) -> None:
    """Count and time every response by its declared path."""

    def start() -> None:
        g.started = time.perf_counter()

    def finish(response: Response) -> Response:
        rule = request.url_rule.rule if request.url_rule else "none"
        seconds = time.perf_counter() - g.get("started", time.perf_counter())
        metrics.observe(rule, request.method, response.status_code, seconds)
        return response

    app.before_request(start)
    app.after_request(finish)
