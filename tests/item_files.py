"""Files of datasets: images, sounds and archives of them, made as people make them."""

import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import wavfile


def picture(
    seed: int = 0, size: tuple[int, int] = (24, 16), form: str = "PNG", mode: str = "RGB"
) -> bytes:
    """An image of (width, height) pixels, other pixels for each seed."""
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, form)
    return file.getvalue()


def tone(seed: int = 0, samples: int = 800, rate: int = 16_000, kind: str = "int16") -> bytes:
    """A sound of one channel; `kind` is the dtype of its samples."""
    wave = np.sin(np.arange(samples) * (0.05 + seed / 100)) * 0.5
    top = 1.0 if kind == "float32" else np.iinfo(kind).max
    file = io.BytesIO()
    wavfile.write(file, rate, (wave * top).astype(kind))
    return file.getvalue()


def zipped(path: Path, files: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def tarred(path: Path, files: Mapping[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def pictures(count: int = 12, form: str = "PNG") -> dict[str, bytes]:
    """Images in the folders good and bad, under a folder of their own."""
    suffix = {"PNG": "png", "JPEG": "jpg", "BMP": "bmp"}[form]
    return {
        f"parts/{'bad' if i % 3 == 0 else 'good'}/{i:03}.{suffix}": picture(i, form=form)
        for i in range(count)
    }
