"""Steps of images against Pillow and numpy."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from shoal.errors import ModelError, SettingError
from shoal.tensors import Array
from training_steps import photo, prepared

PIXELS = ["N", "H", "W", 3]
UINT8 = 2
#: Method of a step, Pillow's, the largest difference in levels, and their mean.
METHODS = {
    "linear": (Image.Resampling.BILINEAR, 1, 0.01),
    "cubic": (Image.Resampling.BICUBIC, 1, 0.01),
    "nearest": (Image.Resampling.NEAREST, 0, 0.0),
}


def resized(raw: Array, **fields: Any) -> Array:
    return prepared(
        [{"step": "image"}, {"step": "resize", **fields}], raw[None], PIXELS, UINT8
    )[0]  # fmt: skip


@pytest.mark.parametrize("size", [(64, 97), (400, 500), (224, 224), (1, 1)], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_a_resize_is_that_of_pillow_to_one_level(method: str, size: tuple[int, int]) -> None:
    height, width = size
    way, largest, mean = METHODS[method]
    raw = photo(240, 321)
    wanted = np.asarray(Image.fromarray(raw).resize((width, height), way)).astype(int)
    difference = np.abs(resized(raw, height=height, width=width, method=method) - wanted)
    assert difference.max() <= largest
    assert difference.mean() <= mean


def bilinear(raw: Array, height: int, width: int) -> Array:
    """Two neighbours in each direction on half-pixel centres, as OpenCV: float64."""

    def along(image: Array, axis: int, n: int) -> Array:
        old = image.shape[axis]
        at = np.clip((np.arange(n) + 0.5) * old / n - 0.5, 0, old - 1)
        low = np.floor(at).astype(int)
        share = (at - low).reshape([-1 if i == axis else 1 for i in range(image.ndim)])
        high = np.minimum(low + 1, old - 1)
        return image.take(low, axis) * (1 - share) + image.take(high, axis) * share

    return along(along(raw.astype(float), 0, height), 1, width)


def test_a_resize_without_antialias_reads_two_neighbours_and_rounds() -> None:
    raw = photo(60, 81)
    found = resized(raw, height=48, width=50, antialias=False)
    assert np.abs(found - np.floor(bilinear(raw, 48, 50) + 0.5)).max() <= 1
    assert (found == np.floor(bilinear(raw, 48, 50) + 0.5)).mean() > 0.999


@pytest.mark.parametrize(
    ("height", "width", "inner"),
    [(100, 300, (32, 96)), (300, 100, (96, 32)), (50, 50, (96, 96)), (1, 500, (1, 96))],
)
def test_a_letterbox_keeps_the_proportion_and_fills_the_rest(
    height: int, width: int, inner: tuple[int, int]
) -> None:
    raw = photo(height, width)
    found = resized(raw, fit="letterbox", height=96, width=96, fill=114)
    top, left = (96 - inner[0]) // 2, (96 - inner[1]) // 2
    wanted = np.full((96, 96, 3), 114)
    small = Image.fromarray(raw).resize(inner[::-1], Image.Resampling.BILINEAR)
    wanted[top : top + inner[0], left : left + inner[1]] = np.asarray(small)
    assert np.abs(found - wanted).max() <= 1
    cornered = resized(raw, fit="letterbox", height=96, width=96, fill=114, place="top-left")
    assert np.abs(cornered[: inner[0], : inner[1]] - np.asarray(small).astype(int)).max() <= 1
    assert (cornered[inner[0] :] == 114).all()


def test_the_shorter_side_and_the_middle_are_those_of_torchvision() -> None:
    raw = photo(243, 365)
    steps = [{"step": "image"}, {"step": "resize", "fit": "shorter", "size": 64},
             {"step": "crop", "width": 56, "height": 57}]  # fmt: skip
    found = prepared(steps, raw[None], PIXELS, UINT8)[0]
    width = int(64 * 365 / 243)
    small = np.asarray(Image.fromarray(raw).resize((width, 64), Image.Resampling.BILINEAR))
    top, left = round((64 - 57) / 2), round((width - 56) / 2)
    wanted = small[top : top + 57, left : left + 56].astype(int)
    assert np.abs(found - wanted).max() <= 1


def test_the_middle_of_a_smaller_image_is_padded() -> None:
    found = prepared(
        [{"step": "image"}, {"step": "crop", "width": 4, "height": 2, "fill": 7}],
        np.full((1, 2, 2, 3), 200, np.uint8), PIXELS, UINT8,
    )  # fmt: skip
    assert found[0, :, :, 0].tolist() == [[7, 200, 200, 7], [7, 200, 200, 7]]


def test_sides_become_multiples_and_never_nothing() -> None:
    assert resized(photo(100, 70), fit="multiple", multiple=32).shape == (96, 64, 3)
    assert resized(photo(5, 70), fit="multiple", multiple=32).shape == (32, 64, 3)


def test_a_height_takes_the_width_along_up_to_a_limit() -> None:
    assert resized(photo(100, 300), fit="height", height=48).shape == (48, 144, 3)
    assert resized(photo(100, 900), fit="height", height=48, width=192).shape == (48, 192, 3)


@pytest.mark.parametrize(("rounding", "width"), [("up", 17), ("down", 16), ("nearest", 17)])
def test_a_width_in_proportion_is_rounded_as_declared(rounding: str, width: int) -> None:
    found = resized(photo(35, 37), fit="height", height=16, rounding=rounding)  # 16.9
    assert found.shape == (16, width, 3)


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_grey_is_pillows_to_the_level(order: str) -> None:
    raw = np.random.default_rng(1).integers(0, 256, (1, 50, 40, 3), np.uint8)
    steps = [{"step": "image", "channels": order}, {"step": "channels", "to": "L"}]
    found = prepared(steps, raw, ["N", "H", "W", 1], UINT8)
    rgb = raw[0] if order == "RGB" else raw[0][..., ::-1]
    assert (found[0, ..., 0] == np.asarray(Image.fromarray(rgb.copy()).convert("L"))).all()


def test_colours_are_exchanged_and_grey_is_repeated() -> None:
    raw = photo(4, 5)[None]
    steps = [{"step": "image"}, {"step": "channels", "to": "BGR"}]
    assert (prepared(steps, raw, PIXELS, UINT8) == raw[..., ::-1]).all()
    grey = raw[..., :1]
    steps = [{"step": "image", "channels": "L"}, {"step": "channels", "to": "RGB"}]
    assert (prepared(steps, grey, PIXELS, UINT8) == np.repeat(grey, 3, -1)).all()


def test_the_whole_chain_equals_numpy_bit_for_bit() -> None:
    raw = np.stack([photo(32, 48, seed=s) for s in range(3)])
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    steps: list[dict[str, Any]] = [
        {"step": "image"},
        {"step": "normalise", "divide": 255, "mean": mean, "std": std},
        {"step": "pad", "width": 50, "height": 40, "fill": -1.5},
        {"step": "layout", "to": "CHW"},
    ]
    found = prepared(steps, raw, ["N", 3, 40, 50])
    scaled = (raw.astype(np.float32) / np.float32(255) - np.float32(mean)) / np.float32(std)
    wanted = np.full((3, 40, 50, 3), np.float32(-1.5))
    wanted[:, :32, :48] = scaled
    assert found.tobytes() == wanted.transpose(0, 3, 1, 2).tobytes()


def test_one_image_without_a_batch_axis_becomes_a_flat_row_of_half_floats() -> None:
    raw = photo(4, 5)
    steps: list[dict[str, Any]] = [
        {"step": "image", "layout": "HWC"}, {"step": "cast", "to": "FP16"},
        {"step": "layout", "to": "flat"},
    ]  # fmt: skip
    found = prepared(steps, raw, [1, 60], 10)
    assert found.dtype == np.float16
    assert (found[0] == raw.ravel()).all()


UNFIT: dict[str, tuple[list[dict[str, Any]], list[int | str], str]] = {
    "another datatype": ([{"step": "image"}], ["N", "H", "W", 3], 'step = "cast", to = "FP32"'),
    "channels last": (
        [{"step": "image"}, {"step": "normalise"}], ["N", 3, "H", "W"], '"layout", to = "CHW"'
    ),
    "another size": (
        [{"step": "image"}, {"step": "resize", "width": 8, "height": 8}, {"step": "normalise"}],
        ["N", 9, 9, 3], "change the sizes",
    ),
    "resize of floats": (
        [{"step": "image"}, {"step": "normalise"}, {"step": "resize", "width": 8, "height": 8}],
        ["N", "H", "W", 3], "put it before normalise",
    ),
    "a crop behind layout": (
        [{"step": "image"}, {"step": "layout", "to": "CHW"},
         {"step": "crop", "width": 8, "height": 8}],
        ["N", 3, "H", "W"], "before layout",
    ),
    "three means of grey": (
        [{"step": "image", "channels": "L"}, {"step": "normalise", "mean": [1, 2, 3]}],
        ["N", "H", "W", 1], "has 1 channels",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", UNFIT)
def test_steps_that_do_not_fit_say_what_would(what: str) -> None:
    steps, shape, words = UNFIT[what]
    with pytest.raises(ModelError) as refused:
        prepared(steps, photo(8, 8)[None], shape)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"width": 8}, 'fit = "stretch" needs width and height'),
        ({"fit": "shorter", "size": 8, "width": 9}, 'fit = "shorter" takes size, not width'),
        ({"width": 8, "height": 8, "method": "cubic", "antialias": False}, "leave antialias"),
        ({"width": 0, "height": 8}, "width"),
        ({"width": 8, "height": 8, "methods": "cubic"}, "unknown field 'methods'"),
        ({"width": 8, "height": 8, "method": "area"}, "there are: linear, cubic, nearest"),
    ],
)
def test_a_resize_that_makes_no_sense_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError) as refused:
        resized(photo(8, 8), **fields)
    assert words in str(refused.value)
    assert "input[0].steps[1]" in str(refused.value)
