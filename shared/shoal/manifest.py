"""What a release consists of: the one file that TUF signs, and that names every other by hash."""

import re
from typing import NamedTuple

import msgspec

from shoal.errors import BundleError, SettingError
from shoal.pipeline import IDENTITY, Pipeline, check
from shoal.validation_errors import decode_errors_as

SCHEMA = 1
LIMIT = 262_144
#: Least bytes of a piece; most pieces of a file.
PIECE, _MOST_PIECES = 1 << 20, 256
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_VERSION = re.compile(r"[0-9]{1,15}")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Piece(NamedTuple):
    """Bytes start..stop (exclusive) of a file; sha256 of these, hex."""

    start: int
    stop: int
    sha256: str


class File(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One file of the bundle: `name` is flat (no folder), `size` in bytes, `sha256` in hex.

    chunks   SHA-256 of each `piece_size` bytes, where there is more than one such: what came from
             a neighbour can be told right from wrong before the file is whole
    """

    name: str
    size: int
    sha256: str
    chunks: list[str] = []

    def pieces(self) -> list[Piece]:
        """The file in pieces that can be verified each; one, where no more is known.

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
    """Bytes of a piece: 1 MiB, doubled until there are no more than 256 of them.

    >>> piece_size(5 << 20) >> 20, piece_size(1 << 30) >> 20
    (1, 4)
    """
    length = PIECE
    while length * _MOST_PIECES < size:
        length *= 2
    return length


class Feature(msgspec.Struct, frozen=True, kw_only=True):
    """One named input. low and high are the training range; outside is odd, not forbidden."""

    name: str
    low: float
    high: float
    unit: str = ""


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """The model as one profile or several can run it.

    name      "fp32", "int8-u8s8-pc", ...: see firmware_profiles/variants.toml
    file      the ONNX file
    metrics   of the held-back data, e.g. {"accuracy": 0.97}
    """

    name: str
    file: File
    metrics: dict[str, float] = {}


class FederatedOrigin(msgspec.Struct, frozen=True, kw_only=True):
    """The federated rounds that a release was made of; who took part, the controller knows.

    rounds, devices, examples   that are in it, together
    epsilon                     of its differential privacy; None without
    """

    task: str
    round: int
    rounds: int
    devices: int
    examples: int
    strategy: str
    epsilon: float | None = None


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """A release, whole.

    model, version    "lot-codes", 3: together the release "lot-codes@3"
    release_counter   security epoch: a device never goes below the highest it has served
    task              "classification" or "regression"
    input, output     tensor names in every variant; input is float32 (rows, len(features)),
                      output float32 (rows, len(labels)) of probabilities, or (rows, 1)
    labels            class names by output column; empty for regression
    threshold         decision threshold of a two-class model
    profiles          profile -> variants that passed its gate, best first; a profile that is
                      absent is not served by this release, see `refused`
    refused           profile -> why it is not served
    reference, golden files "reference.json" (shoal.sketch.References) and "golden.npz"
                      (inputs float32 (n, F), and per variant its outputs float32 (n, C))
    opset, ort        ONNX opset, and the onnxruntime versions that can run it
    dataset           "name@version" it was trained on, and its hash
    pipeline          how a device makes the model's rows of what its sources measure
    taught            by federated rounds, where they did
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

    @property
    def release(self) -> str:
        return f"{self.model}@{self.version}"

    def variant(self, name: str) -> Variant:
        """Variant by name; BundleError if the release has none such."""
        for variant in self.variants:
            if variant.name == name:
                return variant
        raise BundleError(f"{self.release} has no variant {name!r}")

    def files(self) -> list[File]:
        """Every file that the release may have on any device."""
        card = [self.card] if self.card else []
        return [*(v.file for v in self.variants), self.reference, self.golden, *card]

    def files_for(self, profile: str) -> list[File]:
        """Files that a device of `profile` needs; BundleError, with the reason, if none serve it.

        Variants in order of preference first, then what every device needs.
        """
        names = self.profiles.get(profile)
        if not names:
            why = self.refused.get(profile, "it was not built for it")
            raise BundleError(f"{self.release} is not for profile {profile!r}: {why}")
        common = [self.reference, self.golden, *([self.card] if self.card else [])]
        return [*(self.variant(name).file for name in names), *common]


def parse(data: bytes) -> Manifest:
    """Read a manifest's JSON bytes; BundleError if it is hostile, damaged or of another schema."""
    if len(data) > LIMIT:
        raise BundleError(f"manifest of {len(data)} bytes, {LIMIT} allowed")
    with decode_errors_as(lambda cause: BundleError(f"manifest: {cause}")):
        manifest = msgspec.json.decode(data, type=Manifest)
    if manifest.schema != SCHEMA:
        raise BundleError(
            f"manifest of schema {manifest.schema}, this agent reads {SCHEMA}", "update the agent"
        )
    if not _NAME.fullmatch(manifest.model):
        raise BundleError(f"manifest names a model {manifest.model[:100]!r} that cannot be")
    for file in manifest.files():
        if not _FILE.fullmatch(file.name) or not _SHA256.fullmatch(file.sha256) or file.size < 0:
            raise BundleError(f"manifest names a file {file.name[:100]!r} that cannot be")
        wanted = -(-file.size // piece_size(file.size))
        if file.chunks and (
            len(file.chunks) != wanted or not all(map(_SHA256.fullmatch, file.chunks))
        ):
            raise BundleError(f"manifest names pieces of {file.name} that cannot be")
    try:
        check(manifest.pipeline, [f.name for f in manifest.features])
    except SettingError as error:
        raise BundleError(f"manifest: {error}") from error
    known = {v.name for v in manifest.variants}
    for profile, names in manifest.profiles.items():
        if not known.issuperset(names):
            raise BundleError(f"manifest's profile {profile!r} prefers a variant it does not have")
    return manifest


def encode(manifest: Manifest) -> bytes:
    """JSON bytes, the same for the same manifest."""
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
    """Whether `text` may be a version: digits, and few enough for any database.

    >>> is_version("3"), is_version("9" * 16), is_version("-1")
    (True, False, False)
    """
    return _VERSION.fullmatch(text) is not None


def parse_release(text: str) -> tuple[str, int]:
    """Take "model@version" apart; SettingError if it is not one."""
    model, _, version = text.rpartition("@")
    if not is_version(version):
        raise SettingError(
            f"release {text!r:.200}", "write it as model@version, such as lot-codes@3"
        )
    return check_model(model), int(version)
