"""A file of steps, TOML or JSON: read, and checked as far as that needs no model.

[[input]]
name = "x"                      # an input of the model
steps = [
  { step = "image" },           # what a request sends instead, named "image"
  { step = "resize", width = 224, height = 224 },
  { step = "normalise", divide = 255 },
  { step = "layout", to = "CHW" },
]

[[output]]
name = "logits"                 # an output of the model
as = "label"
steps = [{ step = "argmax" }, { step = "labels", labels = ["good", "bad"] }]
"""

import hashlib
import itertools
import tomllib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec

from shoal.controller.training.steps import (
    answers,
    audio,
    byte_blocks,
    detections,
    image,
    table,
    text,
)
from shoal.controller.training.steps.graph import OPSET
from shoal.controller.training.steps.step import InputStep, OutputStep, Source, Step
from shoal.errors import SettingError
from shoal.manifest import DeclaredSteps
from shoal.validation_errors import decode_errors_as, setting_error

#: Bytes of a file of steps.
LIMIT = 16 << 20
_MOST = 256
#: Bytes of a list, as JSON, that a release records whole, and of all that it records.
_LONGEST_LIST, _MOST_RECORDED = 4_096, 65_536
INPUT_STEPS: Mapping[str, type[Step]] = {
    kind.tag(): kind
    for kind in (
        image.Image, image.Channels, image.Resize, image.Crop, image.Pad, image.Normalise,
        image.Layout, image.Cast, audio.Audio, audio.Resample, audio.Frame, audio.LogMel,
        byte_blocks.Bytes, byte_blocks.HeadTail, text.Text, text.Lower, text.Split, text.Vocabulary,
        text.Length, text.Mask, table.Table,
    )
}  # fmt: skip
OUTPUT_STEPS: Mapping[str, type[Step]] = {
    kind.tag(): kind
    for kind in (answers.Softmax, answers.Sigmoid, answers.Temperature, answers.Column,
                 answers.Argmax, answers.TopK, answers.Threshold, answers.Labels,
                 answers.Isotonic, detections.Nms)
}  # fmt: skip
#: Asked for often, and in no ONNX operator that onnxruntime has on a CPU.
_IMPOSSIBLE = {
    **dict.fromkeys(
        ("decode", "jpeg", "png"),
        "decode the file in the program that sends it, with Pillow for instance: "
        'numpy.asarray(PIL.Image.open(path).convert("RGB")); then begin with step = "image"',
    ),
    **dict.fromkeys(
        ("wordpiece", "bpe", "sentencepiece", "tokenize", "tokenise"),
        "no ONNX operator does it: send ids from the tokeniser of the program; words of a fixed "
        "vocabulary are looked up by split and vocabulary",
    ),
    **dict.fromkeys(
        ("wav", "mp3", "flac", "ogg"),
        "decode the file in the program that sends it: for WAV, numpy.frombuffer(wave.open(path)."
        'readframes(-1), "<i2")[None]; then begin with step = "audio"',
    ),
    "hash": "no ONNX operator does it: list the categories in a table, or hash in the program",
}
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class _Input(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: _Name
    steps: Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1, max_length=_MOST)]
    source: _Name | None = msgspec.field(default=None, name="from")


class _Output(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: _Name
    steps: Annotated[list[dict[str, Any]], msgspec.Meta(max_length=_MOST)]
    called: _Name = msgspec.field(name="as")


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    input: Annotated[list[_Input], msgspec.Meta(max_length=_MOST)] = []
    output: Annotated[list[_Output], msgspec.Meta(max_length=_MOST)] = []


class InputChain(msgspec.Struct, frozen=True, kw_only=True):
    """Steps of one input of the model. source: name of what is sent instead."""

    name: str
    source: str
    first: Source
    steps: Sequence[InputStep]


class OutputChain(msgspec.Struct, frozen=True, kw_only=True):
    """Steps of one output of the model. called: name of what comes instead."""

    name: str
    called: str
    steps: Sequence[OutputStep]


class Declaration(msgspec.Struct, frozen=True, kw_only=True):
    """Checked steps. declared: the file's content, as it was."""

    inputs: Sequence[InputChain]
    outputs: Sequence[OutputChain]
    declared: dict[str, Any]

    @property
    def kinds(self) -> dict[str, str]:
        """What is sent, by name: tensor_kinds.parse_kinds."""
        return {k: v for c in self.inputs for k, v in c.first.kinds(c.source).items()}

    @property
    def opset(self) -> int:
        """Version of the standard operators that all of the steps have."""
        chains = [[chain.first, *chain.steps] for chain in self.inputs]
        steps = [*itertools.chain(*chains), *(s for chain in self.outputs for s in chain.steps)]
        return max((step.opset for step in steps), default=OPSET)


def parse(data: bytes) -> Declaration:
    """Steps of a file's bytes: TOML, or JSON where they begin with "{".

    SettingError names the entry, the step and what it takes instead.
    """
    if len(data) > LIMIT:
        raise SettingError(f"steps: {len(data)} bytes, {LIMIT} at most")
    content = _decoded(data)
    try:
        file = msgspec.convert(content, _File)
    except msgspec.ValidationError as error:
        raise setting_error("steps", error, _File) from error
    if not file.input and not file.output:
        raise SettingError("steps: no [[input]] and no [[output]]", "see docs/models/steps.md")
    inputs = [_input_chain(one, f"input[{i}]") for i, one in enumerate(file.input)]
    outputs = [_output_chain(one, f"output[{i}]") for i, one in enumerate(file.output)]
    recorded_bytes = len(msgspec.json.encode(_shortened(content)))
    if recorded_bytes > _MOST_RECORDED:
        raise SettingError(
            f"steps: {recorded_bytes} bytes for a release to record, {_MOST_RECORDED} at most",
            "declare fewer steps, or shorter lists of columns",
        )
    _once("input", "name", [chain.name for chain in inputs])
    _once("output", "as", [chain.called for chain in outputs])
    return Declaration(inputs=inputs, outputs=outputs, declared=content)


def recorded(declared: dict[str, Any], source_sha256: str) -> DeclaredSteps:
    """What a release says of its steps: as they were declared, long lists by count and hash.

    source_sha256   of the author's file
    """
    short = _shortened(declared)
    return DeclaredSteps(
        input=short.get("input", []), output=short.get("output", []), source_sha256=source_sha256
    )


def _shortened(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _shortened(value) for key, value in content.items()}
    if not isinstance(content, list):
        return content
    if content and isinstance(content[0], dict):
        return [_shortened(one) for one in content]
    encoded = msgspec.json.encode(content)
    if len(encoded) <= _LONGEST_LIST:
        return content
    return {"entries": len(content), "sha256": hashlib.sha256(encoded).hexdigest()}


def _decoded(data: bytes) -> dict[str, Any]:
    if data.lstrip()[:1] == b"{":
        with decode_errors_as(lambda cause: SettingError(f"steps: {cause}")):
            return msgspec.json.decode(data, type=dict[str, Any])
    try:
        return tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SettingError(
            f"steps: not TOML: {error!s:.200}", "see docs/models/steps.md"
        ) from error


def _input_chain(one: _Input, where: str) -> InputChain:
    steps = _steps(one.steps, INPUT_STEPS, where)
    first, rest = steps[0], steps[1:]
    sources = [name for name, kind in INPUT_STEPS.items() if issubclass(kind, Source)]
    if not isinstance(first, Source):
        raise SettingError(
            f"steps: {where} begins with {first.tag()}",
            f"begin with what a request sends: {', '.join(sources)}",
        )
    following = [step for step in rest if isinstance(step, InputStep)]
    if len(following) != len(rest):
        raise SettingError(f"steps: {where} has a second of {', '.join(sources)}", "begin with one")
    source = first.tag() if one.source is None else one.source
    return InputChain(name=one.name, source=source, first=first, steps=following)


def _output_chain(one: _Output, where: str) -> OutputChain:
    steps = _steps(one.steps, OUTPUT_STEPS, where)
    return OutputChain(
        name=one.name, called=one.called, steps=[s for s in steps if isinstance(s, OutputStep)]
    )


def _steps(
    declared: Sequence[dict[str, Any]], kinds: Mapping[str, type[Step]], where: str
) -> list[Step]:
    found = []
    for i, one in enumerate(declared):
        at = f"{where}.steps[{i}]"
        name = one.get("step")
        kind = kinds.get(name) if isinstance(name, str) else None
        if kind is None:
            what = "a step without a name" if name is None else f"no step {name!r:.60}"
            hint = f"there are: {', '.join(kinds)}"
            if isinstance(name, str) and name in (INPUT_STEPS.keys() | OUTPUT_STEPS.keys()):
                hint = f"it is for {'an output' if kinds is INPUT_STEPS else 'an input'}; {hint}"
            raise SettingError(f"steps: {at}: {what}", _IMPOSSIBLE.get(str(name), hint))
        if files := [key for key in one if key.endswith("_file")]:
            field = files[0].removesuffix("_file")
            raise SettingError(
                f"steps: {at}: {files[0]} names a file that was not sent",
                f"give its entries as a list, {field} = [...]; the CLI does that by itself",
            )
        try:
            found.append(msgspec.convert(one, kind))
        except msgspec.ValidationError as error:
            raise setting_error(f"steps: {name}", error, kind, at) from error
    return found


def _once(what: str, field: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise SettingError(f"steps: two [[{what}]] with {field} = {name!r}", "one for each")
