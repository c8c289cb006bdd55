"""Firmware profiles: limits and variants of each class of board, from firmware_profiles/*.toml."""

import functools
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from shoal.errors import AbsentError, SettingError
from shoal.validation_errors import setting_error

_INSTALLED = Path(__file__).parent / "firmware_profiles"
_CHECKOUT = Path(__file__).parents[2] / "firmware_profiles"
_NOT_PROFILES = frozenset({"defaults", "variants"})
#: Names a folder of further profiles; one with the name of a built-in profile replaces it.
FURTHER = "SHOAL_FIRMWARE_PROFILES"


class Match(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Facts that a board of this class has; None or empty matches any."""

    arch: str | None = None
    cpu_part: str | None = None
    soc: str | None = None
    ram_mb_max: int | None = None
    any_flags: list[str] = []
    all_flags: list[str] = []
    none_flags: list[str] = []

    @property
    def strictness(self) -> int:
        return sum(bool(getattr(self, f)) for f in self.__struct_fields__)

    def matches(self, facts: Mapping[str, Any]) -> bool:
        """Whether a device with `facts` (Inventory.facts) is of this class."""
        flags = set(facts.get("flags", ()))
        return (
            all(
                want is None or facts.get(name) == want
                for name, want in (
                    ("arch", self.arch),
                    ("cpu_part", self.cpu_part),
                    ("soc", self.soc),
                )
            )
            and (self.ram_mb_max is None or facts.get("ram_mb", 0) <= self.ram_mb_max)
            and (not self.any_flags or bool(flags & set(self.any_flags)))
            and flags >= set(self.all_flags)
            and not flags & set(self.none_flags)
        )


class SessionOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """onnxruntime session options that a profile may change."""

    intra_op_num_threads: int = 1
    inter_op_num_threads: int = 1
    spinning: bool = False


class Resources(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Budget of a board: agent's resident memory, a model's p99 latency and file size, heat."""

    rss_mb: int
    p99_ms: float
    model_mb: float
    cpu_pct: int
    temp_c: int


class QuantizationGate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Accepted loss and cost of a variant: see firmware_profiles/defaults.toml."""

    max_metric_drop: float
    min_cosine: float
    golden_atol: float
    min_same_labels: float = 0.95
    max_time_ratio: float = 1.1


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A class of board.

    variants      in order of preference
    unsupported   why no model can run here, "" where it can: the device is enrolled and listed,
                  and does not count in rollouts
    """

    name: str
    title: str
    match: Match
    variants: list[str]
    budget: Resources
    gate: QuantizationGate
    session: SessionOptions = SessionOptions()
    unsupported: str = ""
    schema: int = 1


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a variant is built: firmware_profiles/variants.toml.

    fallback   only for a profile of which nothing as small passed that it prefers
    """

    quantizer: str
    fallback: bool = False
    activation: str = ""
    weight: str = ""
    per_channel: bool = False
    reduce_range: bool = False
    calibration: str = ""


def folder() -> Path:
    """Folder of the TOML files: in the wheel, or in the checkout."""
    return _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT


@functools.cache
def load_profiles() -> dict[str, Profile]:
    """Every profile by name; SettingError names the file that cannot be read."""
    defaults = _toml(folder() / "defaults.toml")
    further = Path(os.environ[FURTHER]) if os.environ.get(FURTHER) else None
    if further is not None and not further.is_dir():
        raise SettingError(f"{FURTHER}: there is no folder {further}")
    profiles = {}
    for where in filter(None, (folder(), further)):
        for path in sorted(where.glob("*.toml")):
            if path.stem in _NOT_PROFILES:
                continue
            merged = _merge(defaults, _toml(path) | {"name": path.stem})
            profiles[path.stem] = _convert(merged, Profile, path)
    return profiles


@functools.cache
def load_recipes() -> dict[str, Recipe]:
    """Every variant's recipe by name."""
    path = folder() / "variants.toml"
    return {name: _convert(recipe, Recipe, path) for name, recipe in _toml(path).items()}


def profile(name: str) -> Profile:
    """One profile by name; AbsentError if unknown."""
    try:
        return load_profiles()[name]
    except KeyError:
        known = ", ".join(load_profiles())
        raise AbsentError("firmware profile", name, f"there are: {known}") from None


def detect(facts: Mapping[str, Any]) -> Profile:
    """The strictest profile that matches `facts`; generic when none does.

    >>> detect({"arch": "aarch64", "cpu_part": "0xd0b"}).name
    'rpi5'
    >>> detect({"arch": "riscv64"}).name
    'generic'
    """
    fitting = [p for p in load_profiles().values() if p.match.matches(facts)]
    return max(fitting, key=lambda p: p.match.strictness)


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise SettingError(f"firmware profile {path}: {error}") from error


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            merged[key] = _merge(old, value)
        else:
            merged[key] = value
    return merged


def _convert(data: Any, kind: type[Any], path: Path) -> Any:
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise setting_error(f"firmware profile {path}", error, kind) from error
