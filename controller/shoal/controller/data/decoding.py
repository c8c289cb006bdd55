"""Images and sounds of a dataset as arrays, decoded from the bytes of their files.

Images are read by Pillow, WAV by scipy. Both are told how much they may unpack; whoever runs them
on files of strangers does it in a process with limits.
"""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from shoal.errors import DatasetError
from shoal.tensors import Array

if TYPE_CHECKING:
    from PIL.Image import Image

#: Pixels of an image, at most: 200 MB of RGBA.
MOST_PIXELS = 50_000_000
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}
)
AUDIO_SUFFIXES = frozenset({".wav", ".wave"})
#: Sounds that are known and not read, and what to do.
OTHER_AUDIO = frozenset({".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".aac", ".aif", ".aiff"})
#: Readers of Pillow that are asked; others run programs or are seldom tried.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
_CHANNELS = {"L": 1, "RGB": 3, "RGBA": 4}
_SIXTEEN = frozenset({"I;16", "I;16B", "I;16L", "I;16N"})
_EXIF_ORIENTATION = 0x0112
_DAMAGED_IMAGE = "damaged image"
_DAMAGED = (
    OSError, ValueError, SyntaxError, EOFError, TypeError, LookupError, ArithmeticError,
    AttributeError, UnboundLocalError, struct.error, zlib.error,
)  # fmt: skip


class ImageFacts(NamedTuple):
    """Of an image as it is decoded: shape (height, width, channels), the file's format."""

    shape: tuple[int, int, int]
    format: str


class SoundFacts(NamedTuple):
    """shape (samples,) or (samples, channels); rate, samples a second."""

    shape: tuple[int, ...]
    rate: int


def image_facts(data: bytes, decode: bool) -> ImageFacts:
    """Facts of an image; DatasetError when it is none.

    decode   whether all of it is decoded too (a JPEG at an eighth of its size), so that damage is
             found; else its header is read
    """
    with _opened(data) as image:
        width, height = image.size
        shape = (height, width, _CHANNELS[_mode(image)])
        if _is_turned(image, decode):
            shape = (width, height, shape[2])
        found = ImageFacts(shape, str(image.format))
        if decode:
            image.draft("L" if found.shape[2] == 1 else "RGB", (width // 8, height // 8))
            with _errors_as(_DAMAGED_IMAGE):
                image.load()
        return found


def decode_image(data: bytes) -> Array:
    """An image as uint8 (height, width, channels), upright; 1, 3 or 4 channels.

    Palettes become colours, 16 bits the upper 8, CMYK RGB. DatasetError for a damaged file.
    """
    from PIL import ImageOps

    with _opened(data) as image, _errors_as(_DAMAGED_IMAGE):
        image.load()
        upright = ImageOps.exif_transpose(image)
        if upright.mode in _SIXTEEN:
            return (np.asarray(upright).astype(np.uint16) >> 8).astype(np.uint8)[..., None]
        pixels = np.array(upright.convert(_mode(image)))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def thumbnail(data: bytes, side: int) -> bytes:
    """A WebP of an image, upright, `side` pixels at most on its longer side."""
    from PIL import ImageOps

    with _opened(data) as image, _errors_as(_DAMAGED_IMAGE):
        mode = "RGB" if _mode(image) != "L" else "L"
        image.draft(mode, (side, side))
        image.load()
        small = ImageOps.exif_transpose(image)
        if small.mode in _SIXTEEN:
            small = small.point(lambda value: value / 256).convert("L")
        small = small.convert(mode)
        small.thumbnail((side, side))
        file = io.BytesIO()
        small.save(file, "WEBP", quality=75)
    return file.getvalue()


def sound_facts(data: bytes) -> SoundFacts:
    """Facts of a sound; DatasetError when it is no WAV that can be read."""
    rate, samples = _wave(data)
    return SoundFacts(samples.shape, rate)


def decode_sound(data: bytes) -> tuple[Array, int]:
    """A WAV as float32 in [-1, 1], (samples,) or (samples, channels), and its rate."""
    rate, samples = _wave(data)
    if samples.dtype.kind == "f":
        return samples.astype(np.float32), rate
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128, rate
    scale = np.float32(2.0 ** (8 * samples.dtype.itemsize - 1))
    return samples.astype(np.float32) / scale, rate


def _opened(data: bytes) -> "Image":
    from PIL import Image

    with _errors_as("not an image that can be read"):
        try:
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
        except Image.DecompressionBombError as error:
            raise DatasetError("too many pixels") from error
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise DatasetError(f"more than {MOST_PIXELS // 1_000_000} million pixels")
    if not width * height:
        raise DatasetError("no pixels")
    _mode(image)
    return image


@contextmanager
def _errors_as(reason: str) -> Iterator[None]:
    """DatasetError for what libraries raise on a damaged file; their warnings are not shown."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except _DAMAGED as error:
        raise DatasetError(reason) from error


def _is_turned(image: "Image", decode: bool) -> bool:
    """Whether its EXIF swaps width and height; a PNG has to be decoded to know."""
    if image.format == "PNG" and not decode:
        return False
    with _errors_as(_DAMAGED_IMAGE):
        return image.getexif().get(_EXIF_ORIENTATION) in (5, 6, 7, 8)


def _mode(image: "Image") -> str:
    """L, RGB or RGBA."""
    mode = image.mode
    if mode in {"1", "L"} or mode in _SIXTEEN:
        return "L"
    if mode in {"LA", "PA", "RGBA", "La", "RGBa"} or "transparency" in image.info:
        return "RGBA"
    if mode in {"I", "F"}:
        raise DatasetError("32 bits a pixel")
    return "RGB"


def _wave(data: bytes) -> tuple[int, Array]:
    from scipy.io import wavfile

    with _errors_as("not a WAV file that can be read"):
        rate, samples = wavfile.read(io.BytesIO(data))
    if not samples.size or rate <= 0:
        raise DatasetError("no samples")
    return int(rate), samples
