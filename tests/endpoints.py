"""A real endpoint on real sockets, over stand-in models, in this process."""

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from devices import MODEL, engine
from shoal.agent.serving.engine import Engine
from shoal.agent.serving.inference import Inference
from shoal.agent.serving.io.endpoint import Endpoint
from shoal.agent.serving.routes import Routes
from shoal.agent.serving.served_model import ServedModel
from shoal.wire import Health


class Running:
    """An endpoint on a loop of its own. engines: one model each; without any, lot-codes@3."""

    def __init__(self, folder: Path, *engines: Engine) -> None:
        self.servings = {one.manifest.model: served(one) for one in engines or [engine(3)]}
        self.serving = next(iter(self.servings.values()))
        self.path = folder / "agent.sock"
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.endpoint = Endpoint(
            inference_of(self.servings), host="127.0.0.1", port=0, socket=self.path
        )
        self.url = asyncio.run_coroutine_threadsafe(self.endpoint.start(), self.loop).result(10)
        host, _, port = self.url.removeprefix("http://").partition(":")
        self.tcp = (host, int(port))

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    async def _stop(self) -> None:
        await self.endpoint.stop()
        await self.loop.shutdown_default_executor()


def named(model: str, one: Engine) -> Engine:
    """The same release of a model with another name."""
    one.manifest = msgspec.structs.replace(one.manifest, model=model)
    return one


def served(one: Engine) -> ServedModel:
    """A model in service."""
    serving = ServedModel(
        one.manifest.model, clock=lambda: 1.0, timer=lambda: 0.0, lock=contextlib.nullcontext()
    )
    serving.swap(one, Health())
    return serving


def inference_of(models: Mapping[str, ServedModel], **more: Any) -> Inference:
    """The endpoint's requests, without sockets; the device's status is a stand-in."""
    status = {"status": lambda: b'{"device":"cam-1"}', "page": str, "version": "0.1"}
    return Inference(Routes(models, **status | more))


def connect(address: tuple[str, int] | Path) -> socket.socket:
    if isinstance(address, Path):
        made = socket.socket(socket.AF_UNIX)
        made.connect(str(address))
    else:
        made = socket.create_connection(address)
    made.settimeout(10)
    return made


def request(body: bytes, *headers: str, model: str = MODEL) -> bytes:
    """An inference request with its body."""
    lines = [f"POST /v2/models/{model}/infer HTTP/1.1", "Host: x", *headers]
    head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""])
    return head.encode() + body


def infer(number: float = 0.5, model: str = MODEL) -> bytes:
    """A request for one row; its id is the number."""
    tensor = {"name": "input", "shape": [1, 2], "datatype": "FP32", "data": [number, -0.5]}
    return request(json.dumps({"id": str(number), "inputs": [tensor]}).encode(), model=model)


def read(client: socket.socket) -> tuple[int, dict[str, Any]]:
    """One response: its status and JSON."""
    status, _, body = read_whole(client)
    return status, json.loads(body)


def read_whole(client: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """One response: status, headers by their lower-case names, body."""
    file = client.makefile("rb")
    status, headers = int(file.readline().split()[1]), dict[str, str]()
    while (line := file.readline().strip().decode()) != "":
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return status, headers, file.read(int(headers["content-length"]))
