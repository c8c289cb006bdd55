"""Steps of audio: from PCM samples to waveforms of another rate, frames and log-mel spectrograms.

Sources: resampling is scipy.signal.resample_poly (Kaiser window, beta 5, 10 zero crossings);
the spectrogram is that of librosa.feature.melspectrogram and torchaudio.transforms.MelSpectrogram
(mel scales of Slaney's Auditory Toolbox and of the HTK book).
"""

import math
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from shoal.controller.training.steps.graph import Graph, Value
from shoal.controller.training.steps.step import InputStep, Source

Rate = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Size = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
F64 = npt.NDArray[np.float64]
#: int16 is divided by this: samples are from -1 to 1.
_FULL_SCALE = 32_768.0
#: Zero crossings of the resampling filter on either side, and its Kaiser window's beta.
_CROSSINGS, _BETA = 10, 5.0
#: Most taps that a resampling filter has in the graph.
_MOST_TAPS = 1 << 22
#: Length of a transform up to which its matrix is faster than onnxruntime's DFT and small.
_MATRIX = 512
#: Slaney's mel scale: linear below, logarithmic above.
_SLANEY_HZ, _SLANEY_STEP, _SLANEY_LOG = 1_000.0, 200.0 / 3, math.log(6.4) / 27.0


class Audio(Source, frozen=True, kw_only=True, tag="audio"):
    """Samples of one channel, (N, samples): "INT16" of PCM, which become -1 to 1, or "FP32", which
    stay as they are."""

    datatype: Literal["INT16", "FP32"] = "INT16"

    def begin(self, g: Graph, name: str) -> Value:
        """float32 (N, samples)."""
        raw = g.take(name, self.datatype, (f"{name}_N", f"{name}_samples"))
        if self.datatype == "FP32":
            return raw
        scaled = g.op("Div", g.cast(raw, "FP32").name, g.scalar(_FULL_SCALE, "FP32"))
        return Value(scaled, "FP32", raw.shape)

    def kinds(self, name: str) -> dict[str, str]:
        """Audio."""
        return {name: "audio"}


class Resample(InputStep, frozen=True, kw_only=True, tag="resample"):
    """Another sampling rate, by a polyphase filter; ceil(samples · to_hz / from_hz) samples."""

    from_hz: Rate
    to_hz: Rate

    def __post_init__(self) -> None:
        up, down = self._ratio
        if _CROSSINGS * 2 * max(up, down) * up > _MOST_TAPS:
            raise ValueError(
                f"{self.from_hz} to {self.to_hz} Hz is {up} to {down}: choose rates with a larger "
                "common divisor"
            )

    @property
    def _ratio(self) -> tuple[int, int]:
        common = math.gcd(self.from_hz, self.to_hz)
        return self.to_hz // common, self.from_hz // common

    def apply(self, g: Graph, value: Value) -> Value:
        """A convolution with `up` outputs for every `down` inputs, one for each phase."""
        _waveform(self, value)
        assert value.shape is not None
        up, down = self._ratio
        if up == down:
            return value
        kernels, left = _phases(up, down)
        samples = g.length(value, 1)
        product = g.op("Mul", samples, g.ints(up))
        wanted = g.floor_div(g.op("Add", product, g.ints(down - 1)), g.ints(down))
        row = g.op("Unsqueeze", value.name, g.ints(1))
        # As many zeros behind as the last phase reads at the most.
        padded = g.op("Pad", row, g.ints([left, kernels.shape[2] + down]), "", g.ints(2))
        phases = g.op("Conv", padded, g.floats(kernels), strides=[down])
        in_turn = g.op("Transpose", phases, perm=[0, 2, 1])
        whole = g.op("Reshape", in_turn, g.ints([0, -1]))
        cut = g.op("Slice", whole, g.ints(0), wanted, g.ints(1))
        return Value(cut, "FP32", (value.shape[0], f"{cut}_samples"))


def _phases(up: int, down: int) -> tuple[F64, int]:
    """Kernels (up, 1, taps) for outputs 0 to up - 1, and the zeros that stand before the samples.

    Output m is the sum over n of x[n] · h[m · down + half - n · up], with h of 2 · half + 1 taps.
    """
    half = _CROSSINGS * max(up, down)
    from scipy import signal  # a second, which imports without resampling do not pay

    taps = up * signal.firwin(2 * half + 1, 1 / max(up, down), window=("kaiser", _BETA))
    first = -(half // up)
    last = ((up - 1) * down + half) // up
    places = (
        np.arange(up)[:, None] * down + half - np.arange(first, last + 1)[None, :] * up
    )  # of each phase and sample
    inside = (places >= 0) & (places <= 2 * half)
    kernels = np.where(inside, taps[places.clip(0, 2 * half)], 0.0)
    return kernels[:, None], -first


class Frame(InputStep, frozen=True, kw_only=True, tag="frame"):
    """Pieces of `length` samples, one every `hop`: (N, frames, length). A rest that fills no frame
    is left out; with `pad_end`, zeros fill it."""

    length: Size
    hop: Size
    pad_end: bool = False

    def apply(self, g: Graph, value: Value) -> Value:
        """Gather each frame."""
        _waveform(self, value)
        assert value.shape is not None
        name = value.name
        if self.pad_end:
            rest = g.op("Sub", g.length(value, 1), g.ints(self.length))
            hops = g.floor_div(g.op("Add", g.op("Max", rest, g.ints(0)), g.ints(self.hop - 1)),
                               g.ints(self.hop))  # fmt: skip
            whole = g.op("Add", g.op("Mul", hops, g.ints(self.hop)), g.ints(self.length))
            zeros = g.op("Sub", whole, g.length(value, 1))
            name = g.op("Pad", name, g.op("Concat", g.ints(0), zeros, axis=0), "", g.ints(1))
        frames = _frames(g, name, self.length, self.hop)
        return Value(frames, "FP32", (value.shape[0], f"{frames}_frames", self.length))


class LogMel(InputStep, frozen=True, kw_only=True, tag="log-mel"):
    """A mel spectrogram of float32 (N, mels, frames), and its logarithm.

    rate_hz    of the samples
    n_fft, hop samples of a transform, and from one to the next; the window is Hann's, periodic
    center     reflect n_fft / 2 samples at both ends first, so that frame t is around sample t·hop
    power      of the magnitudes: 2 or 1
    mels, f_min, f_max   filters, and the frequencies in Hz that they cover; f_max None: rate_hz / 2
    scale, norm   "slaney" and true for librosa, "htk" and false for torchaudio, as they are by
               default; norm: filters of equal area
    log        "ln", "log10", "db" (10 · log10) or "none", of the larger of the value and `floor`
    range      values below the item's largest less this become that; 0 for no limit
    """

    rate_hz: Rate
    n_fft: Annotated[int, msgspec.Meta(ge=2, le=1 << 16)]
    hop: Size
    mels: Annotated[int, msgspec.Meta(ge=1, le=1_024)]
    center: bool = True
    power: Literal[1, 2] = 2
    f_min: Annotated[float, msgspec.Meta(ge=0, le=1e6)] = 0.0
    f_max: Annotated[float, msgspec.Meta(gt=0, le=1e6)] | None = None
    scale: Literal["slaney", "htk"] = "slaney"
    norm: bool = True
    log: Literal["ln", "log10", "db", "none"] = "ln"
    floor: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1e-10
    range: Annotated[float, msgspec.Meta(ge=0, le=1e6)] = 0.0

    def __post_init__(self) -> None:
        if self.n_fft > _MATRIX and self.n_fft & (self.n_fft - 1):
            raise ValueError(f"n_fft above {_MATRIX} is a power of two")
        if self.f_min >= self._f_max or self._f_max > self.rate_hz / 2:
            raise ValueError("f_min to f_max is within 0 to rate_hz / 2")

    @property
    def _f_max(self) -> float:
        return self.rate_hz / 2 if self.f_max is None else self.f_max

    def apply(self, g: Graph, value: Value) -> Value:
        """Transform, magnitudes, filters, logarithm."""
        _waveform(self, value)
        assert value.shape is not None
        name = value.name
        if self.center:
            half = self.n_fft // 2
            name = g.op("Pad", name, g.ints([half, half]), "", g.ints(1), mode="reflect")
        power = self._power(g, name)
        filters = mel_filters(self.rate_hz, self.n_fft, self.mels, self.f_min, self._f_max,
                              slaney=self.scale == "slaney", norm=self.norm)  # fmt: skip
        mel = self._logarithm(g, g.op("MatMul", g.floats(filters), power))
        if self.range:
            most = g.op("ReduceMax", mel, g.ints([1, 2]), keepdims=1)
            mel = g.op("Max", mel, g.op("Sub", most, g.scalar(self.range, "FP32")))
        return Value(mel, "FP32", (value.shape[0], self.mels, f"{mel}_frames"))

    def _power(self, g: Graph, name: str) -> str:
        """(N, bins, frames) of magnitudes to the power."""
        from scipy import signal

        window = signal.get_window("hann", self.n_fft)
        bins = self.n_fft // 2 + 1
        if self.n_fft <= _MATRIX:
            angles = 2 * np.pi * np.arange(bins)[:, None] * np.arange(self.n_fft) / self.n_fft
            kernels = np.concatenate([np.cos(angles), -np.sin(angles)]) * window
            row = g.op("Unsqueeze", name, g.ints(1))
            both = g.op("Conv", row, g.floats(kernels[:, None]), strides=[self.hop])
            real, imaginary = g.ops("Split", both, outputs=2, axis=1, num_outputs=2)
        else:
            frames = g.op("Mul", _frames(g, name, self.n_fft, self.hop), g.floats(window))
            count = g.op("Shape", frames, start=0, end=2)
            rows = g.op("Reshape", frames, g.ints([-1, self.n_fft, 1]))
            transformed = g.op("DFT", rows, onesided=1)
            shape = g.op("Concat", count, g.ints([bins, 2]), axis=0)
            parts = g.op("Transpose", g.op("Reshape", transformed, shape), perm=[0, 2, 1, 3])
            real = g.op("Gather", parts, g.scalar(0, "INT64"), axis=3)
            imaginary = g.op("Gather", parts, g.scalar(1, "INT64"), axis=3)
        power = g.op("Add", g.op("Mul", real, real), g.op("Mul", imaginary, imaginary))
        return power if self.power == 2 else g.op("Sqrt", power)

    def _logarithm(self, g: Graph, mel: str) -> str:
        if self.log == "none":
            return mel
        natural = g.op("Log", g.op("Max", mel, g.scalar(self.floor, "FP32")))
        factor = {"ln": 1.0, "log10": 1 / math.log(10), "db": 10 / math.log(10)}[self.log]
        return natural if factor == 1 else g.op("Mul", natural, g.scalar(factor, "FP32"))


def mel_filters(
    rate_hz: int, n_fft: int, mels: int, f_min: float, f_max: float, *, slaney: bool, norm: bool
) -> F64:
    """Triangular filters (mels, n_fft // 2 + 1), from centre to centre of their neighbours.

    Source: librosa.filters.mel; with slaney and norm False, torchaudio.functional.melscale_fbanks.
    """
    to_mel, to_hz = (_slaney_mel, _slaney_hz) if slaney else (_htk_mel, _htk_hz)
    low, high = to_mel(np.array([f_min, f_max])).tolist()
    centres = to_hz(np.linspace(low, high, mels + 2))
    frequencies = np.arange(n_fft // 2 + 1) * rate_hz / n_fft
    widths = np.diff(centres)
    away = centres[:, None] - frequencies
    rising = -away[:-2] / widths[:-1, None]
    falling = away[2:] / widths[1:, None]
    filters = np.maximum(0.0, np.minimum(rising, falling))
    area = (centres[2:] - centres[:-2])[:, None] / 2
    found: F64 = filters / area if norm else filters
    return found


def _htk_mel(hz: F64) -> F64:
    return np.asarray(2595.0 * np.log10(1.0 + hz / 700.0))


def _htk_hz(mel: F64) -> F64:
    return np.asarray(700.0 * (10.0 ** (mel / 2595.0) - 1.0))


def _slaney_mel(hz: F64) -> F64:
    above = _SLANEY_HZ / _SLANEY_STEP + np.log(np.maximum(hz, 1e-9) / _SLANEY_HZ) / _SLANEY_LOG
    return np.where(hz >= _SLANEY_HZ, above, hz / _SLANEY_STEP)


def _slaney_hz(mel: F64) -> F64:
    corner = _SLANEY_HZ / _SLANEY_STEP
    above = _SLANEY_HZ * np.exp(_SLANEY_LOG * (mel - corner))
    return np.where(mel >= corner, above, mel * _SLANEY_STEP)


def _frames(g: Graph, name: str, length: int, hop: int) -> str:
    """(N, frames, length): as many frames as fit into the samples."""
    samples = g.op("Shape", name, start=1, end=2)
    rest = g.op("Sub", samples, g.ints(length - hop))
    count = g.op("Max", g.floor_div(rest, g.ints(hop)), g.ints(0))
    numbers = g.op("Range", g.scalar(0, "INT64"), g.op("Squeeze", count), g.scalar(1, "INT64"))
    starts = g.op("Unsqueeze", g.op("Mul", numbers, g.ints(hop)), g.ints(1))
    return g.op("Gather", name, g.op("Add", starts, g.constant(np.arange(length)[None])), axis=1)


def _waveform(step: Any, value: Value) -> None:
    if value.datatype != "FP32" or value.shape is None or len(value.shape) != 2:
        raise step.refused(value, "put it behind audio, where samples are")
