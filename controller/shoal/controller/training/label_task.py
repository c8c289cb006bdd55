"""Whether a label column names classes or holds a quantity: read from the table, asked when that
does not decide it."""

from shoal.controller.data.records import Column, DatasetVersion
from shoal.errors import SettingError

CLASSIFICATION, REGRESSION = "classification", "regression"
#: Different whole numbers up to which a label is taken for classes without being asked.
FEW = 20


def task_of(dataset: DatasetVersion, given: str = "") -> str:
    """The task of models of a dataset's label.

    given   what a person says it is; "" to read it from the column: text, booleans and few whole
            numbers are classes, fractions are a quantity

    SettingError for many whole numbers, which may be either.
    """
    if given:
        return given
    label = next(column for column in dataset.columns if column.role == "label")
    if "float" in label.dtype and not _is_whole(label):
        return REGRESSION
    is_number = label.low is not None and "bool" not in label.dtype
    if not is_number or 0 < len(label.values) <= FEW:
        return CLASSIFICATION
    many = str(len(label.values)) if label.values else "more than a hundred"
    raise SettingError(
        f"label {label.name!r} of {dataset.ref} has {many} different whole numbers: "
        "they may be classes, or a quantity",
        "say --task classification, or --task regression",
    )


def note_on_classes(dataset: DatasetVersion) -> str:
    """What a release says where whole numbers, more than two, were taken for classes; else ""."""
    label = next(column for column in dataset.columns if column.role == "label")
    if label.low is None or "bool" in label.dtype or len(label.values) < 3:
        return ""
    return (
        f"label {label.name!r} holds {len(label.values)} different numbers, which were taken for "
        "classes; if they are a quantity: --task regression"
    )


def _is_whole(label: Column) -> bool:
    """Whether a column of floats holds whole numbers only, as integers do when a cell is empty.

    False for more values than its description lists.
    """
    return bool(label.values) and all(float(value).is_integer() for value in label.values)
