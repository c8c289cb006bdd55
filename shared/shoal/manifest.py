"""Manifest of a release: the file that TUF signs, with the hash of every other file."""

import re
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import msgspec

from shoal.errors import BundleError, ModelError, SettingError
from shoal.pipeline import IDENTITY, Pipeline, check
from shoal.signature import Signature, rows_signature
from shoal.tasks import Classification, Regression, Task, Tensors
from shoal.validation_errors import decode_errors_as

#: Schema 1: rows of float32 features. Schema 2: tensors, with a signature. Both are read; 2 is
#: written only where 1 cannot say it, so that agents that know 1 alone get all that they can run.
SCHEMA, TENSORS_SCHEMA = 1, 2
SCHEMAS = (SCHEMA, TENSORS_SCHEMA)
#: Task of a release of which nothing is claimed: tensors in, tensors out.
TENSORS = "tensors"
LIMIT = 262_144
#: Smallest piece in bytes; largest number of pieces of a file.
PIECE, _MOST_PIECES = 1 << 20, 256
#: Characters of a step's field in a line for people.
_FIELD_TEXT = 120
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_VERSION = re.compile(r"[0-9]{1,15}")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
#: Files of a slot that are not the release's: its manifest, the agent's record, and the proof.
_OF_SLOTS = ("manifest.json", "slot.json", "proof.json")
#: Most files that a model keeps weights in beside its ONNX file.
MOST_DATA = 8


class Piece(NamedTuple):
    """Bytes start to stop (exclusive) of a file, and their SHA-256, hex."""

    start: int
    stop: int
    sha256: str


class File(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One file of the bundle: `name` is flat (no folder), `size` in bytes, `sha256` in hex.

    chunks   SHA-256 of each piece of `piece_size` bytes, where there is more than one: pieces from
             peers are verified before the file is complete
    """

    name: str
    size: int
    sha256: str
    chunks: list[str] = []

    def pieces(self) -> list[Piece]:
        """Pieces that can be verified one by one; the whole file where there are no chunks.

        >>> File(name="a", size=3, sha256="x").pieces()
        [Piece(start=0, stop=3, sha256='x')]
        """
        length = piece_size(self.size)
        if not self.chunks:
            return [Piece(0, self.size, self.sha256)]
        starts = range(0, self.size, length)
        return [
            Piece(start, min(start + length, self.size), sha256)
            for start, sha256 in zip(starts, self.chunks, strict=True)
        ]


def piece_size(size: int) -> int:
    """Bytes of a piece: 1 MiB, doubled until there are at most 256.

    >>> piece_size(5 << 20) >> 20, piece_size(1 << 30) >> 20
    (1, 4)
    """
    length = PIECE
    while length * _MOST_PIECES < size:
        length *= 2
    return length


class Feature(msgspec.Struct, frozen=True, kw_only=True):
    """One named input. low and high are the training range; values outside of it are allowed."""

    name: str
    low: float
    high: float
    unit: str = ""


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """The model in one form, for one profile or several.

    name      "fp32", "int8-u8s8-pc", ...: see firmware_profiles/variants.toml
    file      the ONNX file
    metrics   on the held-out data, e.g. {"accuracy": 0.97}
    data      files that it keeps weights in, by the names that the ONNX file calls them; absent
              where there are none
    alone     its answer depends on what runs with it, so each request is a run of its own, whatever
              the signature says; absent where it does not
    """

    name: str
    file: File
    metrics: dict[str, float] = {}
    data: list[File] | msgspec.UnsetType = msgspec.UNSET
    alone: bool | msgspec.UnsetType = msgspec.UNSET

    @property
    def files(self) -> list[File]:
        """The ONNX file, and the data files that it needs beside it."""
        return [self.file, *(() if self.data is msgspec.UNSET else self.data)]

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.size for file in self.files)


class FederatedOrigin(msgspec.Struct, frozen=True, kw_only=True):
    """Federated rounds that trained a release.

    rounds, devices, examples   totals over its lineage
    epsilon                     of differential privacy; None without
    """

    task: str
    round: int
    rounds: int
    devices: int
    examples: int
    strategy: str
    epsilon: float | None = None


class DeclaredSteps(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Pre- and post-processing that became part of the model's graph at import, as it was declared.

    input, output   entries of the file of steps; of a long list, its number of entries and its hash
    source_sha256   of the author's ONNX file, without the steps
    """

    source_sha256: str
    input: list[dict[str, Any]] = []
    output: list[dict[str, Any]] = []

    @property
    def lines(self) -> list[str]:
        """A line for each entry, for people.

        >>> DeclaredSteps(source_sha256="", output=[{"name": "y", "as": "sure", "steps": [
        ...     {"step": "softmax"}, {"step": "threshold", "at": 0.5}]}]).lines
        ['output y, as sure: softmax, threshold at 0.5']
        """
        entries = [("input", "from", one) for one in self.input]
        entries += [("output", "as", one) for one in self.output]
        lines = []
        for what, word, one in entries:
            named = f", {word} {one[word]}" if word in one else ""
            steps = ", ".join(_step_text(step) for step in one.get("steps", []))
            lines.append(f"{what} {one.get('name')}{named}: {steps or 'as it is'}")
        return lines


def _step_text(step: dict[str, Any]) -> str:
    fields = [f"{name} {_field_text(value)}" for name, value in step.items() if name != "step"]
    return " ".join([str(step.get("step")), *fields])


def _field_text(value: Any) -> str:
    if isinstance(value, dict) and "entries" in value:
        return f"of {value['entries']} entries"
    return str(value) if len(str(value)) <= _FIELD_TEXT else f"{str(value)[:_FIELD_TEXT]}…"


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """A release.

    model, version    "lot-codes", 3: together the release "lot-codes@3"
    release_counter   security epoch: a device rejects releases below the highest it has served
    task              "classification", "regression"; in schema 2 any of shoal.tasks.KINDS
    input, output     tensor names in every variant; input is float32 (rows, len(features)),
                      output float32 (rows, len(labels)) of probabilities, or (rows, 1);
                      "" in schema 2
    labels            class names by output column; empty for regression, and in schema 2
    threshold         decision threshold of a two-class model
    profiles          profile -> variants that passed its gate, best first; for an absent profile
                      see `refused`
    refused           profile -> why the release does not support it
    reference, golden files "reference.json" (shoal.sketch.References) and "golden.npz"
                      (inputs float32 (n, F), and per variant its outputs float32 (n, C)); in
                      schema 2 "golden.msgpack" (shoal.golden.GoldenTensors)
    opset, ort        ONNX opset, and the supported onnxruntime versions
    dataset           "name@version" of the training data, and its hash
    pipeline          how a device makes rows for the model from its sources' measurements
    taught            federated rounds that trained it; None without
    signature         schema 2: the tensors; absent in schema 1, see `tensors`
    steps             declared steps that are part of the model's graph; absent without
    meaning           schema 2: what the outputs mean, of the task `task`; absent for "tensors" and
                      in schema 1, see `answers`. An agent that does not know it serves tensors
    bom, provenance   CycloneDX ML-BOM, and in-toto statement (shoal.provenance) of how the other
                      files were made; absent in releases packed before there were any
    """

    schema: int = SCHEMA
    model: str
    version: int
    release_counter: int
    task: str
    input: str
    output: str
    features: list[Feature]
    labels: list[str]
    variants: list[Variant]
    profiles: dict[str, list[str]]
    reference: File
    golden: File
    opset: int
    ort: str
    created_s: float
    dataset: str
    dataset_sha256: str
    threshold: float = 0.5
    refused: dict[str, str] = {}
    card: File | None = None
    pipeline: Pipeline = IDENTITY
    taught: FederatedOrigin | None = None
    signature: Signature | msgspec.UnsetType = msgspec.UNSET
    steps: DeclaredSteps | msgspec.UnsetType = msgspec.UNSET
    meaning: Task | msgspec.UnsetType = msgspec.UNSET
    bom: File | msgspec.UnsetType = msgspec.UNSET
    provenance: File | msgspec.UnsetType = msgspec.UNSET

    @property
    def release(self) -> str:
        return f"{self.model}@{self.version}"

    @property
    def takes_rows(self) -> bool:
        """Whether it is a model of rows, float32 (n, F) -> (n, C), and not of tensors."""
        return self.signature is msgspec.UNSET

    @property
    def tensors(self) -> Signature:
        """The signature; that of its rows in schema 1."""
        if self.signature is not msgspec.UNSET:
            return self.signature
        columns = max(1, len(self.labels))
        return rows_signature(self.input, len(self.features), self.output, columns)

    @property
    def answers(self) -> Task:
        """What its outputs mean; `Tensors` where nothing is claimed."""
        if self.meaning is not msgspec.UNSET:
            return self.meaning
        if not self.takes_rows:
            return Tensors()
        if self.labels:
            return Classification(output=self.output, labels=self.labels, threshold=self.threshold)
        return Regression(outputs=[self.output], names=["value"])

    def signature_of(self, name: str) -> Signature:
        """The signature, as the variant `name` is run; BundleError if there is none such."""
        if self.variant(name).alone is True:
            return msgspec.structs.replace(self.tensors, together="alone")
        return self.tensors

    def variant(self, name: str) -> Variant:
        """Variant by name; BundleError if the release does not have it."""
        for variant in self.variants:
            if variant.name == name:
                return variant
        raise BundleError(f"{self.release} has no variant {name!r}")

    def files(self) -> list[File]:
        """All files of the release, for any profile."""
        return [*_files(self.variants), *self._common]

    @property
    def _common(self) -> list[File]:
        """Files that every device needs."""
        optional = (self.card, self.bom, self.provenance)
        return [self.reference, self.golden, *(f for f in optional if isinstance(f, File))]

    def files_for(self, profile: str) -> list[File]:
        """Files for a device of `profile`; BundleError, with the reason, if it is unsupported.

        Variants in order of preference first, then the files that every device needs.
        """
        names = self.profiles.get(profile)
        if not names:
            why = self.refused.get(profile, "it was not built for it")
            raise BundleError(f"{self.release} is not for profile {profile!r}: {why}")
        return [*_files(map(self.variant, names)), *self._common]


def _files(variants: Iterable[Variant]) -> list[File]:
    return [file for variant in variants for file in variant.files]


def parse(data: bytes) -> Manifest:
    """Read a manifest's JSON bytes; BundleError if it is invalid or of another schema."""
    if len(data) > LIMIT:
        raise BundleError(f"manifest of {len(data)} bytes, {LIMIT} allowed")
    with decode_errors_as(lambda cause: BundleError(f"manifest: {cause}")):
        manifest = msgspec.json.decode(data, type=Manifest)
    if manifest.schema not in SCHEMAS:
        raise BundleError(
            f"manifest of schema {manifest.schema}, this agent reads {SCHEMA} to {max(SCHEMAS)}",
            "update the agent",
        )
    if not _NAME.fullmatch(manifest.model):
        raise BundleError(f"manifest names a model {manifest.model[:100]!r} that cannot be")
    for file in manifest.files():
        if not is_file_name(file.name) or not _SHA256.fullmatch(file.sha256) or file.size < 0:
            raise BundleError(f"manifest names a file {file.name[:100]!r} that cannot be")
        wanted = -(-file.size // piece_size(file.size))
        if file.chunks and (
            len(file.chunks) != wanted or not all(map(_SHA256.fullmatch, file.chunks))
        ):
            raise BundleError(f"manifest names pieces of {file.name} that cannot be")
    _check_names(manifest)
    _check_interface(manifest)
    known = {v.name for v in manifest.variants}
    for profile, names in manifest.profiles.items():
        if not known.issuperset(names):
            raise BundleError(f"manifest's profile {profile!r} prefers a variant it does not have")
    return manifest


def is_file_name(name: str) -> bool:
    """Whether a file of a release may be called so: in no folder, and as no other file of a slot.

    >>> is_file_name("weights.bin"), is_file_name("../weights.bin"), is_file_name("slot.json")
    (True, False, False)
    """
    return _FILE.fullmatch(name) is not None and name not in _OF_SLOTS


def check_data_names(names: Collection[str]) -> None:
    """ModelError unless data files may be called so in a release, beside its own files."""
    hint = (
        "save its weights in one file beside it: onnx.save(onnx.load(path), path, "
        'save_as_external_data=True, location="weights.bin")'
    )
    if len(names) > MOST_DATA:
        raise ModelError(f"it keeps weights in {len(names)} files, {MOST_DATA} at most", hint)
    for name in names:
        if not is_file_name(name) or name.endswith((".onnx", ".md", ".json", ".msgpack", ".npz")):
            raise ModelError(
                f"a data file cannot be called {name[:100]!r}: letters, digits, . _ - only, in no "
                "folder, and not as a release's own files end",
                hint,
            )


def _check_names(manifest: Manifest) -> None:
    """BundleError for two files of one name, which would be one file in a slot."""
    seen: dict[str, str] = {}
    for file in manifest.files():
        if seen.setdefault(file.name, file.sha256) != file.sha256:
            raise BundleError(f"manifest names two files {file.name!r}")


def _check_interface(manifest: Manifest) -> None:
    """BundleError unless it says either how rows are made or which tensors there are."""
    if manifest.takes_rows != (manifest.schema == SCHEMA):
        raise BundleError(
            f"manifest of schema {manifest.schema}: its signature is missing or extra"
        )
    if manifest.meaning is not msgspec.UNSET and (
        manifest.takes_rows or manifest.meaning.word != manifest.task
    ):
        raise BundleError(
            f"manifest of schema {manifest.schema} and task {manifest.task!r:.100}: its outputs "
            f"mean {manifest.meaning.word}"
        )
    try:
        check(manifest.pipeline, [f.name for f in manifest.features])
        manifest.tensors.check()
        if manifest.meaning is not msgspec.UNSET:
            manifest.meaning.check(manifest.tensors)
    except (SettingError, ModelError) as error:
        raise BundleError(f"manifest: {error}") from error


def encode(manifest: Manifest) -> bytes:
    """Canonical JSON bytes."""
    return msgspec.json.encode(manifest, order="sorted")


def check_model(name: str) -> str:
    """Return `name` if it may name a model, else raise SettingError."""
    if not is_model(name):
        raise SettingError(
            f"model name {name!r}", "use 1 to 63 lower-case letters, digits and inner hyphens"
        )
    return name


def is_model(name: str) -> bool:
    """Whether `name` may name a model.

    >>> is_model("lot-codes"), is_model("lost+found")
    (True, False)
    """
    return _NAME.fullmatch(name) is not None


def is_version(text: str) -> bool:
    """Whether `text` may be a version: 1 to 15 digits.

    >>> is_version("3"), is_version("9" * 16), is_version("-1")
    (True, False, False)
    """
    return _VERSION.fullmatch(text) is not None


def parse_release(text: str) -> tuple[str, int]:
    """Parse "model@version"; SettingError if it is invalid."""
    model, _, version = text.rpartition("@")
    if not is_version(version):
        raise SettingError(
            f"release {text!r:.200}", "write it as model@version, such as lot-codes@3"
        )
    return check_model(model), int(version)
