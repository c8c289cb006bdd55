"""Items of images, audio or tensors of a dataset: read one by one, with labels and a split."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from shoal.controller.data import splits
from shoal.errors import DatasetError
from shoal.tensors import Array

Kind = Literal["images", "audio", "tensors"]
#: What a label is: a class's name, numbers (one or an array of them), boxes, or nothing.
LabelKind = Literal["classes", "numbers", "boxes", ""]
#: Inputs of an item that is no set of named arrays.
IMAGE, AUDIO, RATE = "image", "audio", "rate"


class Boxes(NamedTuple):
    """Objects in an image: xyxy float32 (n, 4), pixels from the top left; class names (n,)."""

    xyxy: npt.NDArray[np.float32]
    classes: list[str]


class Items(ABC):
    """n items in an order that never changes. Nothing is held in memory but an index.

    kind        "images": `image`, uint8 (height, width, 1, 3 or 4 channels);
                "audio": `audio`, float32 in [-1, 1], (samples,) or (samples, channels), and `rate`,
                int64 (), samples a second;
                "tensors": arrays by name, of any datatype, without an axis for the items
    inputs      names of an item's arrays
    label_kind  "classes", "numbers" or "boxes"; "" for items without labels
    classes     names of the classes in the labels or boxes, in order
    """

    kind: Kind
    inputs: tuple[str, ...]
    label_kind: LabelKind = ""
    classes: Sequence[str] = ()

    @abstractmethod
    def __len__(self) -> int:
        """Number of items."""

    @abstractmethod
    def read(self, index: int) -> dict[str, Array]:
        """The arrays of an item, by input; DatasetError, naming it, when it cannot be read."""

    @abstractmethod
    def name(self, index: int) -> str:
        """What a message calls the item: its path in the archive, or its number."""

    @abstractmethod
    def labels(self) -> Array:
        """Labels, shape (n, ...): class names as str, or numbers as they were given.

        DatasetError for items with boxes or without labels.
        """

    @abstractmethod
    def sites(self) -> Array:
        """Names of sites as str, shape (n,); "" where there is none."""

    @abstractmethod
    def groups(self) -> Array | None:
        """Names of the `split` column as str, shape (n,): those of one name stay together."""

    def boxes(self, index: int) -> Boxes:
        """Boxes of an image; DatasetError for items without any."""
        raise DatasetError(
            f"{self.name(index)} has no boxes: its labels are {self.label_kind or 'missing'}",
            "add the dataset with COCO or YOLO labels",
        )

    def split(
        self, seed: int, holdout: float
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Numbers of the items to learn from, and of those held back, each in order.

        Items of a group stay together; where a label has several items, it is on both sides.
        Groups that are named train, test and alike are parts already: all but train is held back.

        seed      the same seed is the same split
        holdout   share that is held back, above 0 and below 1

        DatasetError when one side would be empty.
        """
        group = self.groups()
        held = None if group is None else splits.parts_of(group)
        if held is None:
            held = splits.held_back(_strata(self), group, holdout=holdout, seed=seed)
        return np.flatnonzero(~held), np.flatnonzero(held)


def _strata(items: Items) -> npt.NDArray[np.int64]:
    """Site and class as one number each, shape (n,)."""
    _, site = np.unique(items.sites(), return_inverse=True)
    if items.label_kind != "classes":
        return site
    _, label = np.unique(items.labels(), return_inverse=True)
    return site * (int(label.max(initial=0)) + 1) + label
