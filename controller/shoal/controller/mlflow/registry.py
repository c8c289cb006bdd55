"""What is taken from an MLflow registry: references, versions, and the MLmodel file of one.

Format: https://mlflow.org/docs/latest/model/#mlmodel-file
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote, urlsplit

import msgspec
import yaml

from shoal.controller.releases.records import ModelFacts
from shoal.errors import InputError, ModelError

PREFIX = "mlflow:"
#: Schemes of artifacts that the MLflow server serves itself, and of a logged model.
PROXIED, LOGGED = "mlflow-artifacts", "models"
#: Characters of a name, as MLflow has them: neither "/" nor ":"; "@" would start an alias.
_REFERENCE = re.compile(
    r"(?:mlflow:)?([^/:@\n]{1,250})(?:/([1-9]\d{0,8})|@([\w.-]{1,250}))", re.ASCII
)
_HELP = "write it as mlflow:NAME/VERSION or mlflow:NAME@alias"
_TO_LOG = (
    'log one: mlflow.onnx.log_model(onnx_model, name="model", registered_model_name="NAME"); '
    "skl2onnx and torch.onnx.export make ONNX of other models"
)
#: Characters of a tag's value, and tags, that are remembered.
TEXT, MOST_TAGS = 500, 50


class Reference(NamedTuple):
    """A version of a registered model: by its number, or by an alias; the other is ""."""

    name: str
    version: str = ""
    alias: str = ""

    def __str__(self) -> str:
        return f"{self.name}@{self.alias}" if self.alias else f"{self.name}/{self.version}"


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """A registered version. source: URI of its artifacts; run_id: "" for none.

    tags   of the version; run_tags: of the run that logged it
    """

    name: str
    version: str
    source: str
    run_id: str = ""
    tags: dict[str, str] = {}
    run_tags: dict[str, str] = {}

    @property
    def ref(self) -> str:
        return f"{self.name}/{self.version}"


class Registry(Protocol):
    """An MLflow server: shoal.controller.mlflow.io.server.

    All raise LinkError when it is out of reach, AbsentError for what it does not have, DeniedError
    when it refuses the credentials, InputError for what it refuses otherwise.
    """

    @property
    def url(self) -> str: ...
    def alias_version(self, reference: Reference) -> str: ...
    def version_of(self, reference: Reference) -> Version: ...
    def call(self, method: str, path: str, body: Mapping[str, Any]) -> Any: ...
    def list_files(self, source: str) -> dict[str, int]: ...
    def read_file(self, source: str, name: str, limit: int) -> bytes: ...
    def download(self, source: str, name: str, to: Any, limit: int) -> int: ...


class TensorName(NamedTuple):
    """An input or output of a signature. name: "" where it has none; column: of a table."""

    name: str
    column: bool


class MLmodel(NamedTuple):
    """The ONNX flavour of a model: path of its file, and its signature where there is one."""

    file: str
    inputs: list[TensorName]
    outputs: list[TensorName]
    signature: dict[str, str]


def parse_reference(text: str) -> Reference:
    """A reference; InputError shows how one is written.

    >>> parse_reference("mlflow:press/3"), str(parse_reference("mlflow:press@champion"))
    (Reference(name='press', version='3', alias=''), 'press@champion')
    """
    match = _REFERENCE.fullmatch(text)
    if match is None:
        raise InputError(f"{text[:80]!r} names no version of an MLflow model", _HELP)
    return Reference(match[1], match[2] or "", match[3] or "")


def read_mlmodel(data: bytes, ref: str) -> MLmodel:
    """The ONNX flavour in the bytes of MLmodel.

    ModelError for a file that cannot be read, and for a model without that flavour, with how to
    log one.
    """
    try:
        given = yaml.safe_load(data)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        first = str(error).splitlines()[0][:200]
        raise ModelError(
            f"mlflow:{ref}: its MLmodel is not YAML: {first}", "log it again"
        ) from error
    flavours = given.get("flavors") if isinstance(given, dict) else None
    if not isinstance(flavours, dict):
        raise ModelError(f"mlflow:{ref}: its MLmodel has no flavors", "log it again with mlflow")
    onnx = flavours.get("onnx")
    if not isinstance(onnx, dict):
        names = ", ".join(sorted(map(str, flavours)))[:200]
        raise ModelError(
            f"mlflow:{ref} has no ONNX flavour, only: {names}",
            _TO_LOG.replace("NAME", ref.rpartition("/")[0]),
        )
    file = str(onnx.get("data") or "model.onnx")
    if not is_plain_path(file):
        raise ModelError(f"mlflow:{ref}: its MLmodel names the file {file[:80]!r}", "log it again")
    signature = given.get("signature")
    reported = signature if isinstance(signature, dict) else {}
    texts = {k: v for k in ("inputs", "outputs") if isinstance(v := reported.get(k), str)}
    return MLmodel(
        file, _names(texts.get("inputs", ""), ref), _names(texts.get("outputs", ""), ref), texts
    )


def is_plain_path(name: str) -> bool:
    """Whether a name is a path below a folder, and nowhere else.

    >>> is_plain_path("a/model.onnx"), is_plain_path("../x"), is_plain_path("/x")
    (True, False, False)
    """
    parts = name.split("/")
    return (
        len(name) <= 500
        and name.isprintable()
        and "\\" not in name
        and all(part not in ("", ".", "..") for part in parts)
    )


def check_signature(model: MLmodel, facts: ModelFacts, ref: str) -> None:
    """ModelError where a signature's names or number of tensors are not those of the graph.

    A signature of columns says how a table becomes one tensor: its names are no tensors.
    """
    for what, reported, graph in (
        ("input", model.inputs, [one.name for one in facts.inputs]),
        ("output", model.outputs, [one.name for one in facts.outputs]),
    ):
        if not reported or any(one.column for one in reported):
            continue
        names = [one.name for one in reported if one.name]
        strange = [name for name in names if name not in graph]
        missing = len(graph) - len(reported) if what == "input" else 0
        if strange or missing or len(reported) > len(graph):
            which = f"{what} {strange[0]!r}" if strange else f"{len(reported)} {what}s"
            raise ModelError(
                f"the signature of mlflow:{ref} has {which}, its ONNX graph has "
                f"{', '.join(graph) or 'none'}",
                "log it again with the signature of the graph, its tensors by the same names; or "
                "without a signature",
            )


def artifact_path(source: str, ref: str) -> str:
    """Path of a proxied source on the MLflow server; ModelError for artifacts that are elsewhere.

    >>> artifact_path("mlflow-artifacts:/1/models/m-1/artifacts", "press/3")
    '1/models/m-1/artifacts'
    """
    parts = urlsplit(source)
    path = parts.path.strip("/")
    if parts.scheme != PROXIED:
        raise ModelError(
            f"the files of mlflow:{ref} are at {source[:200]}, which MLflow does not serve",
            "start it with --serve-artifacts and --default-artifact-root mlflow-artifacts:/, and "
            "log the model again; or download it, and import its ONNX file",
        )
    if not is_plain_path(path):
        raise ModelError(f"mlflow:{ref} has the source {source[:200]!r}", "log it again")
    return path


def bounded_tags(given: Any) -> dict[str, str]:
    """Tags of an answer, [{"key", "value"}], as a dictionary; MOST_TAGS of TEXT characters."""
    rows = [one for one in given or [] if isinstance(one, dict)]
    pairs = [(str(one.get("key", ""))[:120], str(one.get("value", ""))[:TEXT]) for one in rows]
    return dict(sorted(pairs)[:MOST_TAGS])


def page_of(url: str, name: str, version: str) -> str:
    """Where the MLflow console shows a version."""
    return f"{url.rstrip('/')}/#/models/{quote(name, safe='')}/versions/{version}"


def _names(text: str, ref: str) -> list[TensorName]:
    if not text:
        return []
    try:
        found = msgspec.json.decode(text.encode())
    except msgspec.DecodeError as error:
        raise ModelError(
            f"mlflow:{ref}: its signature is not JSON: {error}", "log it again"
        ) from error
    rows = found if isinstance(found, list) else []
    return [
        TensorName(str(one.get("name") or ""), one.get("type") != "tensor")
        for one in rows
        if isinstance(one, dict)
    ]
