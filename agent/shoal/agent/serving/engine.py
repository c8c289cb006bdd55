"""A loaded release (Engine), and the port that loads one with the installed onnxruntime."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from shoal.agent.installed.record import Slot
from shoal.errors import InputError
from shoal.manifest import Manifest
from shoal.pipeline import IDENTITY, RAW
from shoal.preparation import Conversion
from shoal.profile import Profile
from shoal.signature import Tensor
from shoal.sketch import F32, References
from shoal.tensor_sketches import ItemStatistics, item_statistics
from shoal.tensors import Array, Named

#: Every onnxruntime loads the oldest one, and none the newest.
OLDEST_OPSET, NEWEST_OPSET = 13, 60


class Session(Protocol):
    """A loaded model; InputError, ModelError.

    run          rows: float32 (n, F) -> float32 (n, C)
    run_tensors  tensors by name -> the named outputs
    """

    def run(self, rows: F32) -> F32: ...
    def run_tensors(self, feeds: Named, outputs: Sequence[str]) -> list[Array]: ...


class Engine:
    """A loaded release, ready to serve.

    slow_s      one-row latency above which a request is slow, in seconds
    sample      inputs that fit a release of tensors: its first golden vector
    takes_rows  whether its requests are rows, and not tensors by name; see `signature`
    """

    def __init__(
        self,
        *,
        slot: Slot,
        manifest: Manifest,
        references: References,
        session: Session,
        slow_s: float,
        sample: Named | None = None,
    ) -> None:
        self.slot, self.manifest, self.references = slot, manifest, references
        self.session, self.slow_s, self.sample = session, slow_s, sample or {}
        self.takes_rows, self.signature = manifest.takes_rows, manifest.signature_of(slot.variant)
        self.features = len(manifest.features)
        self.regression = manifest.task == "regression"
        self.outputs = max(1, len(manifest.labels))

    @functools.cached_property
    def raw(self) -> Conversion | None:
        """The pipeline that turns rows in the plant's units into the model's; None for identity.

        A row is complete: with a stretch it has all samples, oldest first; "last" fills nothing.
        """
        line = self.manifest.pipeline
        if line == IDENTITY or self.manifest.input == RAW:
            return None
        return Conversion(line, [f.name for f in self.manifest.features])

    @functools.cached_property
    def tensors(self) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """Inputs and outputs of the signature by name."""
        return self.signature.by_name()

    @functools.cached_property
    def statistics(self) -> ItemStatistics | None:
        """What is sketched of the items of a release of tensors; None: nothing."""
        if self.takes_rows:
            return None
        return item_statistics(self.signature, self.references, self.manifest.answers)

    @functools.cached_property
    def defaults(self) -> Named:
        """Inputs that a request may leave out, and their values."""
        found = {tensor.name: tensor.default_array for tensor in self.signature.inputs}
        return {name: array for name, array in found.items() if array is not None}

    def test(self) -> None:
        """Run a row of zeros, or the sample; ModelError when that fails."""
        if self.takes_rows:
            self.session.run(np.zeros((1, self.features), np.float32))
        else:
            self.session.run_tensors(self.sample, [t.name for t in self.signature.outputs])

    def check_shape(self, rows: F32) -> None:
        """InputError unless `rows` is (n, features)."""
        if not self.takes_rows:
            require_rows(self.manifest)
        if rows.ndim != 2 or rows.shape[1] != self.features:
            raise InputError(
                f"{self.manifest.release}: input of shape {list(rows.shape)}, "
                f"[rows, {self.features}] is needed",
                "its columns are: " + ", ".join(f.name for f in self.manifest.features[:20]),
            )

    def check(self, rows: F32) -> None:
        """InputError unless `rows` is (n, features) and every value is finite."""
        self.check_shape(rows)
        if not np.isfinite(np.add.reduce(rows, axis=None)) and not np.isfinite(rows).all():
            row, column = np.argwhere(~np.isfinite(rows))[0]
            raise InputError(
                f"{self.manifest.release}: {self.manifest.features[column].name!r} is missing "
                f"(NaN or infinite) in row {row}",
                "this model takes no missing values: fill it in, or leave the row out",
            )


def require_rows(manifest: Manifest) -> None:
    """InputError when the release's requests are tensors, and not rows."""
    if not manifest.takes_rows:
        names = ", ".join(tensor.name for tensor in manifest.tensors.inputs)[:200] or "no input"
        raise InputError(
            f"{manifest.release} takes tensors ({names}), not rows",
            "send it requests through the endpoint",
        )


class Runtime(NamedTuple):
    """The installed onnxruntime: its version, and a test for whether it loads an ONNX opset.

    Testing an opset that it does not load costs 1.3 MB of memory, for good.
    """

    ort: str
    loads: Callable[[int], bool]

    def newest(self) -> int:
        """The newest opset that it loads, by bisection."""
        low, high = OLDEST_OPSET, NEWEST_OPSET
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.loads(middle) else (low, middle - 1)
        return low


class Loader(Protocol):
    """Loads a release from its slot; ModelError names what this runtime cannot do.

    settle   work deferred until the release serves: fill the session cache, free memory
    trim     free memory
    """

    @property
    def runtime(self) -> Runtime: ...
    def load(self, slot: Slot, profile: Profile) -> Engine: ...
    def settle(self, slot: Slot, profile: Profile) -> None: ...
    def trim(self) -> None: ...
