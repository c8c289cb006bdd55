"""Shoal's agent on a device, and the SDK for programs on the same machine (docs/agent.md).

The SDK is two classes: `Client` uses the running agent over its Unix socket; `Session` runs the
device's model in the program's own process. A folder a domain: pure modules, adapters in its io/.

    from shoal.agent import Client, Session

Importing this package loads neither, nor numpy or onnxruntime.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.agent.serving.io.client import Client
    from shoal.agent.serving.io.embedded import Session

__all__ = ["Client", "Session"]

_MODULES = {"Client": "shoal.agent.serving.io.client", "Session": "shoal.agent.serving.io.embedded"}


def __getattr__(name: str) -> Any:
    """The SDK's classes, imported on first use."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
