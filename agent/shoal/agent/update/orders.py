"""Checks of an ordered release on this device: floors, profile, runtime and size."""

import re

from shoal.agent.installed.floors import Floors
from shoal.agent.serving.engine import Runtime
from shoal.epochs import FIRST
from shoal.errors import (
    BundleError,
    ModelError,
    RefusedError,
    RevokedError,
    ShoalError,
    StaleError,
)
from shoal.manifest import File, Manifest
from shoal.orders import Order
from shoal.profile import Profile

#: MB from which on the memory that is left is looked at before a download; smaller models meet the
#: probe's limits. MB for each stored MB, which onnxruntime maps and packs, and for the process.
_LARGE_MB, _PER_STORED, _BESIDE_MB = 64, 1.1, 64


def check_fits(
    manifest: Manifest,
    order: Order,
    *,
    epoch: int = FIRST,
    profile: Profile,
    runtime: Runtime,
    floors: Floors,
) -> list[File]:
    """The release's files for this device; raises when it must not, or cannot, run it.

    epoch   of the metadata that lists it: releases packed before a revocation that are listed
            after it are as good as those packed since

    Raises RevokedError, StaleError below the floor, BundleError for another release than ordered,
    ModelError with cause "unsupported-profile" or "unusable-model" for one that this device cannot
    run.
    """
    if (manifest.model, manifest.version) != (order.model, order.version):
        raise BundleError(f"{order.path} holds {manifest.release}, {order.release} was ordered")
    floor = floors.counters.get(order.model, 0)
    if floors.is_revoked(manifest.release):
        raise RevokedError(f"{manifest.release} was revoked; signed metadata of then is refused")
    counter = max(manifest.release_counter, epoch)
    if counter < floor:
        raise StaleError(
            f"{manifest.release} has release counter {counter}, "
            f"this device does not go below {floor}"
        )
    if profile.unsupported:
        raise UnsupportedError(f"{profile.name}: {profile.unsupported}")
    try:
        files = manifest.files_for(profile.name)
    except BundleError as error:
        raise UnsupportedError(error.message) from error
    check_runtime(manifest, runtime)
    _check_size(manifest, profile)
    return files


def check_memory(manifest: Manifest, profile: Profile, free_mb: float) -> None:
    """Raise ShortError where the machine has too little memory left to try a large release.

    free_mb   that one more process may use, the probe beside the model that serves; 0: unknown
    """
    for name in manifest.profiles[profile.name]:
        size_mb = manifest.variant(name).size / 2**20
        need_mb = _PER_STORED * size_mb + _BESIDE_MB
        if size_mb >= _LARGE_MB and free_mb and free_mb < need_mb:
            raise ShortError(
                f"{manifest.release}: to load {name} takes about {need_mb:.0f} MB of memory, and "
                f"{max(0.0, free_mb):.0f} MB are left on this device",
                "end other programs, undeploy another model, or choose a smaller one",
            )


class ShortError(ModelError):
    """Too little memory is left for the release."""

    code = "too-big"


class UnsupportedError(ModelError):
    """The profile of this device cannot run the release."""

    code = "unsupported-profile"


def check_runtime(manifest: Manifest, runtime: Runtime) -> None:
    """Raise ModelError unless the installed onnxruntime can load this release."""
    if not in_range(runtime.ort, manifest.ort):
        raise ModelError(
            f"{manifest.release} needs onnxruntime {manifest.ort}, this device has {runtime.ort}",
            "update the agent's onnxruntime, or export for an older one",
        )
    if not runtime.loads(manifest.opset):
        raise ModelError(
            f"{manifest.release} uses ONNX opset {manifest.opset}, onnxruntime {runtime.ort} "
            f"knows {runtime.newest()}",
            "export it with an older opset, or update the agent's onnxruntime",
        )


def in_range(version: str, wanted: str) -> bool:
    """Whether `version` fits every comma separated comparison of `wanted`; "" fits all.

    >>> in_range("1.32.0", ">=1.31,<2"), in_range("1.30.1", ">=1.31"), in_range("1.32.0", "")
    (True, False, True)
    """
    return all(_fits(_version(version), part.strip()) for part in wanted.split(",") if part.strip())


def cause_of(error: ShoalError) -> str:
    """The cause, a slug, under which an error is reported.

    >>> cause_of(StaleError("x")), cause_of(BundleError("x")), cause_of(UnsupportedError("x"))
    ('stale', 'unusable-model', 'unsupported-profile')
    """
    if isinstance(error, BundleError):
        return "unusable-model"
    if isinstance(error, RefusedError):
        return error.reason
    return {"untrusted": "bad-signature", "storage": "disk-full", "unreachable": "download"}.get(
        error.code, error.code
    )


def _check_size(manifest: Manifest, profile: Profile) -> None:
    for name in manifest.profiles[profile.name]:
        size_mb = manifest.variant(name).size / 2**20
        if size_mb > profile.budget.model_mb:
            raise ModelError(
                f"{manifest.release}: {name} is {size_mb:.1f} MB, profile {profile.name} carries "
                f"{profile.budget.model_mb:g} MB",
                "quantize it, or choose a smaller model",
            )


def _fits(version: tuple[int, ...], part: str) -> bool:
    found = re.fullmatch(r"(>=|<=|==|!=|<|>)?\s*([0-9][0-9.]*)", part)
    if not found:
        return False
    sign, other = found.group(1) or "==", _version(found.group(2))
    width = max(len(version), len(other))
    a = version + (0,) * (width - len(version))
    b = other + (0,) * (width - len(other))
    return {
        ">=": a >= b,
        "<=": a <= b,
        "==": a == b,
        "!=": a != b,
        "<": a < b,
        ">": a > b,
    }[sign]


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])
