"""Estimators of training jobs and their parameters: read by the controller, listed by `shoal model
train --help`, the API and the console."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta, inspect

from shoal.errors import SettingError
from shoal.pipeline import Pipeline

Scaler = Annotated[
    Literal["minmax", "standard"],
    Meta(description="scaling of the columns: to 0..1, or to mean 0 and deviation 1"),
]


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Parameters common to all training jobs; each field describes itself."""

    seed: Annotated[
        int, Meta(ge=0, lt=2**32, description="of all random numbers: same seed, same model")
    ] = 0
    holdout: Annotated[
        float,
        Meta(
            gt=0,
            lt=0.9,
            description="share of rows held back to measure on; "
            "of groups, where the dataset has a split column",
        ),
    ] = 0.25
    sites: Annotated[list[str], Meta(description="train on these sites only; empty for all")] = []
    missing: Annotated[
        Literal["refuse", "last", "mean"],
        Meta(
            description="a missing value on the device: refuse the row, take the last value, "
            "or the mean of the training rows"
        ),
    ] = "refuse"


class Mlp(Params, frozen=True, kw_only=True):
    """A small neural network."""

    hidden: Annotated[
        list[Annotated[int, Meta(ge=1, le=10_000)]],
        Meta(min_length=1, max_length=8, description="neurons of each layer, as 64,32"),
    ] = msgspec.field(default_factory=lambda: [64, 32])
    alpha: Annotated[float, Meta(ge=0, description="weight decay: more is smoother")] = 1e-4
    max_iter: Annotated[int, Meta(ge=1, le=10_000, description="passes over the rows")] = 300
    scaler: Scaler = "minmax"


class Linear(Params, frozen=True, kw_only=True):
    """Logistic or ridge regression."""

    strength: Annotated[float, Meta(gt=0, description="of the regularisation")] = 1.0
    max_iter: Annotated[int, Meta(ge=1, le=10_000, description="steps of the solver")] = 2_000
    scaler: Scaler = "standard"


class Forest(Params, frozen=True, kw_only=True):
    """A random forest."""

    trees: Annotated[int, Meta(ge=1, le=10_000, description="number of trees")] = 100
    depth: Annotated[
        int, Meta(ge=0, le=64, description="of a tree; 0 for unlimited: large files")
    ] = 0


class BoostedTrees(Params, frozen=True, kw_only=True):
    """Gradient-boosted trees (histograms, second order; Ke et al. 2017, LightGBM)."""

    trees: Annotated[
        int, Meta(ge=1, le=2_000, description="rounds of boosting: a tree each, or one a class")
    ] = 100
    rate: Annotated[
        float, Meta(gt=0, le=1, description="share of each tree's answer: less needs more trees")
    ] = 0.1
    leaves: Annotated[int, Meta(ge=2, le=1_024, description="of a tree at most")] = 15
    least_rows: Annotated[int, Meta(ge=1, le=100_000, description="in a leaf at least")] = 20
    l2: Annotated[float, Meta(ge=0, description="L2 regularisation of the leaves")] = 0.0


class ImportParams(Params, frozen=True, kw_only=True):
    """An imported model: only the split of the data is configured.

    task       "classification" or "regression"; "" for what the label says
    pipeline   from the dataset's columns, as measured in the plant, to the model's inputs;
               None when the columns are the inputs
    """

    task: Literal["", "classification", "regression"] = ""
    pipeline: Pipeline | None = None


class ScriptParams(Params, frozen=True, kw_only=True):
    """A script of one's own, as docs/training.md says.

    task     "classification" or "regression"; "" for what the label says
    name     of the script, as a Python module
    entry    "" to run it as a program, "function" of it, or "module:function"
    values   what the script is given as its own parameters
    """

    task: Literal["", "classification", "regression"] = ""
    name: Annotated[str, Meta(pattern=r"^[A-Za-z_]\w{0,63}$")] = "train"
    entry: Annotated[str, Meta(pattern=r"^$|^([A-Za-z_][\w.]*:)?[A-Za-z_]\w*$")] = ""
    values: dict[str, Any] = {}


class Estimator(NamedTuple):
    """What is fitted: its task ("" for any), its parameters, and what it is."""

    task: str
    params: type[Params]
    meaning: str


IMPORTED, SCRIPT = "imported", "script"
ESTIMATORS: dict[str, Estimator] = {
    "mlp": Estimator("classification", Mlp, "a small neural network"),
    "logistic": Estimator("classification", Linear, "logistic regression"),
    "random-forest": Estimator("classification", Forest, "a random forest; fp32 only"),
    "boosted-trees": Estimator("classification", BoostedTrees, "gradient-boosted trees; fp32 only"),
    "mlp-regressor": Estimator("regression", Mlp, "a small neural network"),
    "ridge": Estimator("regression", Linear, "ridge regression"),
    "random-forest-regressor": Estimator("regression", Forest, "a random forest; fp32 only"),
    "boosted-trees-regressor": Estimator(
        "regression", BoostedTrees, "gradient-boosted trees; fp32 only"
    ),
    SCRIPT: Estimator("", ScriptParams, "a script of one's own"),
    IMPORTED: Estimator("", ImportParams, "a model that was trained elsewhere"),
}
#: Task -> the estimator that is taken when none is named.
DEFAULT_ESTIMATORS = {"classification": "mlp", "regression": "mlp-regressor"}


def estimators_of(task: str) -> list[str]:
    """Names of the estimators of a task.

    >>> estimators_of("regression")
    ['mlp-regressor', 'ridge', 'random-forest-regressor', 'boosted-trees-regressor']
    """
    return [name for name, one in ESTIMATORS.items() if one.task == task]


def read_params(estimator: str, params: Mapping[str, Any]) -> Params:
    """Validated parameters of `estimator`; SettingError names what is wrong and what is allowed."""
    if estimator not in ESTIMATORS:
        raise SettingError(f"no estimator {estimator!r}", f"there are: {', '.join(trainable())}")
    kind = ESTIMATORS[estimator].params
    try:
        return msgspec.convert(_with_lists(params, kind), kind)
    except msgspec.ValidationError as error:
        known = ", ".join(f"{one.name} ({one.kind})" for one in parameters_of(kind))
        raise SettingError(f"{estimator}: {error}", f"its parameters are: {known}") from error


def _with_lists(params: Mapping[str, Any], kind: type[Params]) -> dict[str, Any]:
    """A single value where a list is wanted is a list of one; text with commas, of several."""
    lists = {one.name for one in parameters_of(kind) if isinstance(one.default, list)}

    def listed(value: Any) -> Any:
        if isinstance(value, str):
            return [part.strip() for part in value.split(",") if part.strip()]
        return value if isinstance(value, list) else [value]

    return {name: listed(value) if name in lists else value for name, value in params.items()}


def typed(params: Mapping[str, str]) -> dict[str, Any]:
    """Parameters as a person writes them: numbers and lists where the text is one.

    >>> typed({"max_iter": "200", "hidden": "32,16", "scaler": "standard"})
    {'max_iter': 200, 'hidden': [32, 16], 'scaler': 'standard'}
    """

    def read(text: str) -> Any:
        for form in (text, f"[{text}]") if "," in text else (text,):
            try:
                return msgspec.json.decode(form)
            except msgspec.DecodeError:
                continue
        return text

    return {name: read(text) for name, text in params.items()}


# ---- what a person reads about them


class Parameter(msgspec.Struct, frozen=True, kw_only=True):
    """A parameter: its kind with bounds, its default, and what it does."""

    name: str
    kind: str
    default: Any
    meaning: str

    @property
    def example(self) -> str:
        """NAME=DEFAULT, as it is typed after --param.

        >>> Parameter(name="hidden", kind="", default=[64, 32], meaning="").example
        'hidden=64,32'
        """
        listed = isinstance(self.default, list)
        value = ",".join(map(str, self.default)) if listed else str(self.default)
        return f"{self.name}={value}"


class EstimatorFacts(msgspec.Struct, frozen=True, kw_only=True):
    """An estimator that can be named in a training job.

    task      "classification" or "regression"
    default   whether it is taken for its task when none is named
    """

    name: str
    task: str
    meaning: str
    default: bool
    parameters: list[Parameter]


def trainable() -> list[str]:
    """Names of the estimators that a training job may name."""
    return [name for name in ESTIMATORS if name not in (IMPORTED, SCRIPT)]


def list_estimators() -> list[EstimatorFacts]:
    """All estimators that a training job may name, with their parameters."""
    found = ((name, ESTIMATORS[name]) for name in trainable())
    return [
        EstimatorFacts(
            name=name,
            task=one.task,
            meaning=one.meaning,
            default=name in DEFAULT_ESTIMATORS.values(),
            parameters=parameters_of(one.params),
        )
        for name, one in found
    ]


def parameters_of(kind: type[Params]) -> list[Parameter]:
    """Parameters of a struct: its own first, then those that all jobs have.

    >>> parameters_of(Forest)[0].kind
    'whole number, 1 to 10000'
    """
    common = Params.__struct_fields__
    fields = sorted(msgspec.structs.fields(kind), key=lambda field: field.name in common)
    return [
        Parameter(
            name=field.name,
            kind=_kind(inspect.type_info(field.type)),
            default=field.default if field.default is not msgspec.NODEFAULT
            else field.default_factory(),
            meaning=_meaning(inspect.type_info(field.type)),
        )
        for field in fields
    ]  # fmt: skip


def _meaning(info: inspect.Type) -> str:
    described = isinstance(info, inspect.Metadata) and info.extra_json_schema
    return str(described["description"]) if described else ""


def _kind(info: inspect.Type) -> str:
    match info:
        case inspect.Metadata():
            return _kind(info.type)
        case inspect.IntType():
            return "whole number" + _bounds(info)
        case inspect.FloatType():
            return "number" + _bounds(info)
        case inspect.LiteralType():
            return " or ".join(map(str, info.values))
        case inspect.ListType():
            most = f"up to {info.max_length}, " if info.max_length else ""
            return f"list of {most}each a {_kind(info.item_type)}"
        case inspect.StrType():
            return "text"
    return "see docs/training.md"


def _bounds(info: inspect.IntType | inspect.FloatType) -> str:
    whole = isinstance(info, inspect.IntType)
    least, most = info.ge, info.le
    if whole and info.lt is not None:
        most = info.lt - 1
    if least is not None and most is not None:
        return f", {least} to {most}"
    words = {"from": least, "above": info.gt, "up to": most, "below": None if whole else info.lt}
    said = " and ".join(f"{word} {value:g}" for word, value in words.items() if value is not None)
    return f", {said}" if said else ""
