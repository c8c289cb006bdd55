"""What a run is made with: versions of Python, of the libraries that build models, the machine."""

import functools
import hashlib
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
    """Name -> version; no library is loaded for it.

    "packages" is the hash of all that is installed: two runs that have it in common have run the
    same versions of everything.
    """
    found = {"python": platform.python_version(), "machine": platform.machine()}
    found["cpus"] = str(len(os.sched_getaffinity(0)))
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found | {"packages": f"sha256:{_packages_sha256()}"}


@functools.cache
def _packages_sha256() -> str:
    """SHA-256, hex, of the sorted lines "name==version" of every installed distribution."""
    every = importlib.metadata.distributions()
    lines = {f"{one.name.lower().replace('_', '-')}=={one.version}" for one in every if one.name}
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()
