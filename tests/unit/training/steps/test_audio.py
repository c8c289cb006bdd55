"""Steps of audio against scipy and numpy."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import signal

from shoal.errors import ModelError, SettingError
from shoal.tensors import Array
from training_steps import prepared

FP32 = 1


def sound(samples: int, rate_hz: int = 16_000, seed: int = 0) -> Array:
    """A chirp with a hum and noise: int16 (1, samples)."""
    rng = np.random.default_rng(seed)
    time = np.arange(samples) / rate_hz
    wave = 0.3 * np.sin(2 * np.pi * (200 + 900 * time) * time) + 0.1 * np.sin(2 * np.pi * 50 * time)
    return ((wave + 0.02 * rng.normal(size=samples)) * 32_767).astype(np.int16)[None]


@pytest.mark.parametrize(
    ("from_hz", "to_hz"), [(48_000, 16_000), (44_100, 16_000), (8_000, 16_000), (16_000, 16_000)]
)
@pytest.mark.parametrize("samples", [1, 4_801])
def test_another_rate_is_that_of_resample_poly(from_hz: int, to_hz: int, samples: int) -> None:
    raw = sound(samples, from_hz)
    steps = [{"step": "audio"}, {"step": "resample", "from_hz": from_hz, "to_hz": to_hz}]
    common = math.gcd(from_hz, to_hz)
    wanted = signal.resample_poly(raw[0] / 32_768, to_hz // common, from_hz // common)
    found = prepared(steps, np.concatenate([raw, raw]), ["N", "S"])
    assert found.shape == (2, len(wanted))
    assert np.abs(found - wanted).max() < 1e-5


def test_frames_overlap_and_a_rest_is_left_out_or_filled() -> None:
    raw = np.arange(10, dtype=np.float32)[None]
    head: dict[str, Any] = {"step": "audio", "datatype": "FP32"}
    found = prepared([head, {"step": "frame", "length": 4, "hop": 3}], raw, ["N", "T", 4])
    assert found[0].tolist() == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]
    filled = [head, {"step": "frame", "length": 4, "hop": 4, "pad_end": True}]
    assert prepared(filled, raw, ["N", "T", 4])[0, -1].tolist() == [8, 9, 0, 0]
    assert prepared(filled, raw[:, :2], ["N", "T", 4]).tolist() == [[[0, 1, 0, 0]]]
    cut = [head, {"step": "frame", "length": 4, "hop": 4}]
    assert prepared(cut, raw[:, :2], ["N", "T", 4]).shape == (1, 0, 4)


def hz_of(mel: Array, scale: str) -> Array:
    if scale == "htk":
        return 700 * (10 ** (mel / 2595) - 1)
    return np.where(mel < 15, mel * 200 / 3, 1000 * 6.4 ** ((mel - 15) / 27))


def mel_of(hz: float, scale: str) -> float:
    if scale == "htk":
        return 2595 * math.log10(1 + hz / 700)
    return hz * 3 / 200 if hz < 1000 else 15 + 27 * math.log(hz / 1000) / math.log(6.4)


def mel_power(wave: Array, rate: int, n_fft: int, hop: int, mels: int, f_max: float,
              scale: str, norm: bool, power: int) -> Array:  # fmt: skip
    """librosa's (slaney, norm) and torchaudio's (htk) formula, filter by filter: float64."""
    padded = np.pad(wave, n_fft // 2, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    starts = range(0, len(padded) - n_fft + 1, hop)
    spectrum = np.abs(np.array([np.fft.rfft(padded[s : s + n_fft] * window) for s in starts]).T)
    points = hz_of(np.linspace(0, mel_of(f_max, scale), mels + 2), scale)
    frequencies = np.arange(n_fft // 2 + 1) * rate / n_fft
    rows = []
    for low, middle, high in zip(points, points[1:], points[2:], strict=False):
        up, down = (frequencies - low) / (middle - low), (high - frequencies) / (high - middle)
        triangle = np.clip(np.minimum(up, down), 0, None)
        rows.append(triangle * (2 / (high - low) if norm else 1))
    return np.array(rows) @ spectrum**power


SPECTROGRAMS = {
    "as whisper": (400, 160, 80, 8_000.0, "slaney", True, 2),
    "as torchaudio": (512, 128, 40, 7_600.0, "htk", False, 2),
    "of a long transform": (1_024, 256, 64, 8_000.0, "slaney", True, 1),
}


@pytest.mark.parametrize("which", SPECTROGRAMS)
def test_a_log_mel_spectrogram_is_that_of_the_formula(which: str) -> None:
    n_fft, hop, mels, f_max, scale, norm, power = SPECTROGRAMS[which]
    raw = sound(8_000)
    step: dict[str, Any] = {
        "step": "log-mel", "rate_hz": 16_000, "n_fft": n_fft, "hop": hop, "mels": mels,
        "f_max": f_max, "scale": scale, "norm": norm, "power": power, "log": "log10", "range": 8,
    }  # fmt: skip
    found = prepared([{"step": "audio"}, step], raw, ["N", mels, "T"])[0]
    wanted = mel_power(raw[0] / 32_768, 16_000, n_fft, hop, mels, f_max, scale, norm, power)
    wanted = np.log10(np.maximum(wanted, 1e-10))
    wanted = np.maximum(wanted, wanted.max() - 8)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() < 1e-3


def test_silence_is_the_floor_and_decibels_are_ten_of_a_power_of_ten() -> None:
    step: dict[str, Any] = {
        "step": "log-mel", "rate_hz": 16_000, "n_fft": 64, "hop": 32, "mels": 4, "log": "db",
        "center": False,
    }  # fmt: skip
    found = prepared([{"step": "audio"}, step], np.zeros((1, 128), np.int16), ["N", 4, "T"])
    assert found.shape == (1, 4, 3)
    assert np.allclose(found, -100)
    scaled = [{"step": "audio"}, step, {"step": "normalise", "mean": [-100], "std": [50]}]
    assert np.allclose(prepared(scaled, np.zeros((1, 128), np.int16), ["N", 4, "T"]), 0)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"step": "resample", "from_hz": 44_101, "to_hz": 16_000}, "larger common divisor"),
        (
            {"step": "log-mel", "rate_hz": 16_000, "n_fft": 1_000, "hop": 1, "mels": 4},
            "power of two",
        ),
        (
            {"step": "log-mel", "rate_hz": 8_000, "n_fft": 64, "hop": 1, "mels": 4, "f_max": 5e3},
            "within 0 to rate_hz / 2",
        ),
        ({"step": "mp3"}, "wave.open"),
    ],
)
def test_audio_steps_that_make_no_sense_are_refused(step: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError) as refused:
        prepared([{"step": "audio"}, step], sound(9), ["N", "S"])
    assert words in str(refused.value)


def test_a_spectrogram_of_pixels_is_refused() -> None:
    with pytest.raises(ModelError, match="put it behind audio"):
        prepared(
            [{"step": "image"}, {"step": "resample", "from_hz": 2, "to_hz": 1}],
            sound(9),
            ["N", "S"],
        )
