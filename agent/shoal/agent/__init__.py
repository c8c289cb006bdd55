"""The agent: what runs on a device. Pure modules here, adapters in io/, built in __main__.

For programs on the same machine there are two doors (docs/agent.md): `Client` asks the running
agent over its Unix socket; `Session` runs the device's model in the program's own process.

    from shoal.agent import Client, Session

Importing this package loads neither, nor numpy or onnxruntime.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.agent.serving.io.client import Client
    from shoal.agent.serving.io.embedded import Session

__all__ = ["Client", "Session"]

_HOME = {"Client": "shoal.agent.serving.io.client", "Session": "shoal.agent.serving.io.embedded"}


def __getattr__(name: str) -> Any:
    """The SDK's classes, loaded when they are first asked for."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
