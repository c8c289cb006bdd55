"""What the items of a model's tensors are: as a person says, or inferred from shapes and a sample.

What was inferred is a note that names the option to say otherwise.
"""

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from shoal import item_statistics, tensor_sketches
from shoal.errors import InputError, ModelError
from shoal.signature import KINDS, MOST_KNOWN, Signature, Sketched, Tensor
from shoal.tensors import Array, Named

#: What a person may say beside the kinds: this input is not looked at.
NOTHING = "nothing"
LAYOUTS = ("HW", "HWC", "CHW", "NHW", "NHWC", "NCHW")
_OPTION = "--input-kind"
#: Channels of an image; its least height and width, and samples of a sound, to be taken for one.
_CHANNELS, _LEAST_SIDE, _LEAST_SAMPLES = (1, 3, 4), 16, 128
#: Neighbouring samples of a sound go together: least mean correlation.
_LEAST_CORRELATION = 0.5
#: Integers in a row that are taken for tokens, at least.
_LEAST_TOKENS = tensor_sketches.FEW_VALUES + 1


def parse_kinds(text: str) -> dict[str, str]:
    """Kinds by input from "x=image,y=tokens"; a kind may have a layout: "x=image:NCHW".

    InputError for a kind or a layout that there is not.

    >>> parse_kinds("x=image:NCHW, ids=tokens")
    {'x': 'image:NCHW', 'ids': 'tokens'}
    """
    found = {}
    for part in filter(None, (one.strip() for one in text.split(","))):
        name, equals, said = part.rpartition("=")
        kind, _, layout = said.partition(":")
        choices = ", ".join((*KINDS, NOTHING))
        if not equals or kind not in (*KINDS, NOTHING):
            raise InputError(
                f"input kind {part!r:.200}", f"write INPUT=KIND, such as x=image, of: {choices}"
            )
        if layout and (kind != "image" or layout not in LAYOUTS):
            raise InputError(
                f"input kind {part!r:.200}: an image has a layout of {', '.join(LAYOUTS)}",
                f"write {name}=image:NHWC, or leave the layout out",
            )
        found[name] = said
    return found


def check_names(said: Mapping[str, str], inputs: Sequence[str]) -> None:
    """InputError when a person names an input that the model does not have."""
    unknown = [name for name in said if name not in inputs]
    if unknown:
        raise InputError(
            f"the model has no input {unknown[0]!r:.200}", f"it has: {', '.join(inputs)[:200]}"
        )


def with_kinds(
    signature: Signature,
    items: Sequence[Named],
    answers: Sequence[Named],
    said: Mapping[str, str],
) -> tuple[Signature, list[str]]:
    """The signature with what is looked at, and notes of what was inferred.

    items, answers   inputs and outputs of the sample's items
    said             kinds by input, of parse_kinds

    States and inputs with a default are not looked at. ModelError when an input cannot be what a
    person says.
    """
    fed = {state.taken for state in signature.states}
    given = {state.given for state in signature.states}
    notes: list[str] = []
    inputs = []
    for tensor in signature.inputs:
        arrays = [item[tensor.name] for item in items]
        if tensor.name in said:
            inputs.append(_as_declared(tensor, arrays, said[tensor.name]))
        elif tensor.name in fed or tensor.default is not None:
            inputs.append(tensor)
        else:
            sketched, note = _inferred(tensor, arrays)
            inputs.append(msgspec.structs.replace(tensor, sketched=sketched))
            notes.append(note)
    outputs = [
        tensor
        if tensor.name in given
        else _replaced(tensor, _of_numbers(tensor, [answer[tensor.name] for answer in answers]))
        for tensor in signature.outputs
    ]
    made = msgspec.structs.replace(signature, inputs=inputs, outputs=outputs)
    made.check()
    return made, notes


def _as_declared(tensor: Tensor, arrays: Sequence[Array], said: str) -> Tensor:
    kind, _, layout = said.partition(":")
    if kind == NOTHING:
        return _replaced(tensor, None)
    if (kind == "text") != (tensor.datatype == "BYTES"):
        raise _unfit(tensor, kind)
    if kind == "image":
        layout = layout or _layout(tensor, arrays[0].shape, certain=False)
        sketched = _image(layout, arrays)
    elif kind == "audio":
        sketched = _audio(arrays)
    elif kind in ("tokens", "text"):
        sketched = _of_tokens(tensor, arrays)
    else:
        sketched = Sketched(kind="numbers")
    made = _replaced(tensor, sketched)
    if sketched.kind != kind or (kind == "image" and not layout):
        raise _unfit(tensor, kind)
    try:
        sketched.check(tensor)
    except ModelError:
        raise _unfit(tensor, kind) from None
    return made


def _unfit(tensor: Tensor, kind: str) -> ModelError:
    needs = {
        "image": "an image has a height and a width, and 1, 3 or 4 channels at one end: "
        f"{_OPTION} {tensor.name}=image:NHWC says which axis is which",
        "tokens": "tokens are integers",
        "text": "texts are BYTES",
    }.get(kind, f"of {tensor.datatype} it can be: {', '.join(_possible(tensor))}")
    return ModelError(
        f"input {tensor.name!r} ({tensor.datatype} {tensor.shape_text}) is no {kind}", needs
    )


def _possible(tensor: Tensor) -> list[str]:
    if tensor.datatype == "BYTES":
        return ["text", NOTHING]
    return [kind for kind in (*KINDS, NOTHING) if kind != "text"]


def _inferred(tensor: Tensor, arrays: Sequence[Array]) -> tuple[Sketched, str]:
    """What the items of an input look like, and a sentence that says so."""
    shape = [n for axis, n in enumerate(arrays[0].shape) if axis != tensor.batch]
    other = f"if it is none, say {_OPTION} {tensor.name}=numbers"
    if tensor.datatype == "BYTES":
        return _of_tokens(tensor, arrays), f"input {tensor.name} is sketched as text"
    whole = arrays[0].dtype.kind in "iu"
    if layout := _layout(tensor, arrays[0].shape, certain=True):
        sketched = _image(layout, arrays)
        return sketched, (
            f"input {tensor.name} was taken for an image {layout} with values from "
            f"{sketched.low:g} to {sketched.high:g}; {other}"
        )
    if whole and len(shape) == 1 and shape[0] >= _LEAST_TOKENS and not _looks_like_sound(arrays):
        sketched = _of_tokens(tensor, arrays)
        end = "" if sketched.padding is None else f", with {sketched.padding} behind the last one"
        return sketched, f"input {tensor.name} was taken for tokens{end}; {other}"
    if len(shape) == 1 and shape[0] >= _LEAST_SAMPLES and _looks_like_sound(arrays):
        sketched = _audio(arrays)
        return sketched, (
            f"input {tensor.name} was taken for audio with values up to {sketched.high:g}; {other}"
        )
    note = f"input {tensor.name} is sketched as numbers"
    if len(shape) >= 2 and min(shape) >= _LEAST_SIDE:
        note += f"; if it is an image or audio, say {_OPTION} {tensor.name}=image or =audio"
    return Sketched(kind="numbers"), note


def _layout(tensor: Tensor, shape: tuple[int, ...], *, certain: bool) -> str:
    """Layout of an image of this shape; "" where it can be none, or, if `certain`, is ambiguous."""
    rest = [axis for axis in range(len(shape)) if axis != tensor.batch]
    if tensor.batch is None and len(rest) == 4 and shape[0] == 1:
        rest = rest[1:]
    first, last = (len(rest) == 3 and shape[rest[at]] in _CHANNELS for at in (0, -1))
    letters = "CHW" if first else "HWC" if last else "HW" if len(rest) == 2 else ""
    sides = [shape[axis] for axis, letter in zip(rest, letters, strict=False) if letter in "HW"]
    if not letters or (first and last) or (certain and letters == "HW"):
        return ""
    if certain and min(sides) < _LEAST_SIDE:
        return ""
    named = dict(zip(rest, letters, strict=True))
    return "".join(named.get(axis, "N") for axis in range(len(shape)))


def _image(layout: str, arrays: Sequence[Array]) -> Sketched:
    """With black and white: 0 and 255 or 0 and 1 where all values are within, else those seen."""
    low, high = _range(arrays)
    if arrays[0].dtype == np.uint8 or (low >= 0 and 1 < high <= 255):
        low, high = 0.0, 255.0
    elif low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    return Sketched(kind="image", layout=layout, low=low, high=max(high, low + 1e-6))


def _audio(arrays: Sequence[Array]) -> Sketched:
    """With the largest possible value: an integer's, 1 where all values are within, else seen."""
    dtype = arrays[0].dtype
    if dtype.kind in "iu":
        return Sketched(kind="audio", high=float(np.iinfo(dtype).max) + 1)
    largest = max(map(abs, _range(arrays)))
    return Sketched(kind="audio", high=1.0 if largest <= 1 else largest)


def _of_numbers(tensor: Tensor, arrays: Sequence[Array]) -> Sketched:
    """Of an output: what a model says is numbers, or texts."""
    return _of_tokens(tensor, arrays) if tensor.datatype == "BYTES" else Sketched(kind="numbers")


def _of_tokens(tensor: Tensor, arrays: Sequence[Array]) -> Sketched:
    """With the padding, where items end in runs of one id, and the most frequent hashes."""
    if tensor.datatype == "BYTES":
        found = [
            item_statistics.hashes_of_words(item_statistics.words_of(array.ravel().tolist()))
            for array in arrays
        ]
        return Sketched(kind="text", known=_most_frequent(found))
    if arrays[0].dtype.kind not in "iu":
        return Sketched(kind="numbers")
    flat = [array.ravel()[: item_statistics.MOST_READ] for array in arrays]
    padding = _padding(flat)
    real = [ids if padding is None else ids[ids != padding] for ids in flat]
    known = _most_frequent([item_statistics.hashes_of_ids(ids) for ids in real])
    return Sketched(kind="tokens", padding=padding, known=known)


def _padding(rows: Sequence[Array]) -> int | None:
    """The id with which most rows of tokens end, twice at least, some after fewer than others."""
    ends: dict[int, list[int]] = {}
    for ids in rows:
        if len(ids) > 1:
            other = np.flatnonzero(ids != ids[-1])
            ends.setdefault(int(ids[-1]), []).append(len(ids) - 1 - int(other[-1]) if len(other)
                                                     else len(ids))  # fmt: skip
    for padding, runs in ends.items():
        if sum(run > 1 for run in runs) > len(rows) / 2:
            return padding
    return None


def _most_frequent(hashes: Sequence[Array]) -> list[int]:
    together = np.concatenate([np.empty(0, np.int64), *hashes]).astype(np.int64)
    times = np.bincount(together, minlength=item_statistics.HASHES)
    most = np.argsort(-times, kind="stable")[:MOST_KNOWN]
    return sorted(int(one) for one in most if times[one])


def _looks_like_sound(arrays: Sequence[Array]) -> bool:
    """Whether neighbouring values go together and swing around their mean."""
    found = []
    for array in arrays:
        x = array.ravel()[:65_536].astype(np.float64)
        x = x - x.mean() if len(x) else x
        power = float(x @ x)
        if np.isfinite(power) and power > 0:
            found.append(float(x[1:] @ x[:-1]) / power)
    return bool(found) and float(np.mean(found)) >= _LEAST_CORRELATION


def _range(arrays: Sequence[Array]) -> tuple[float, float]:
    """Least and largest finite value of the items; 0 and 1 without any."""
    finite = [array[np.isfinite(array)] for array in arrays]
    known = [array for array in finite if array.size]
    if not known:
        return 0.0, 1.0
    return min(float(a.min()) for a in known), max(float(a.max()) for a in known)


def _replaced(tensor: Tensor, sketched: Sketched | None) -> Tensor:
    return msgspec.structs.replace(tensor, sketched=sketched)
