"""What a run is made with: versions of Python, of the libraries that build models, the machine."""

import importlib.metadata
import os
import platform

#: Distributions whose version can change what is built.
_LIBRARIES = (
    "shoal",
    "numpy",
    "pandas",
    "scikit-learn",
    "scipy",
    "onnx",
    "onnxruntime",
    "skl2onnx",
)


def environment() -> dict[str, str]:
    """Name -> version; no library is loaded for it."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    found["cpus"] = str(len(os.sched_getaffinity(0)))
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
