"""Records of datasets."""

from shoal.controller.store.records import Record


class Column(Record, frozen=True, kw_only=True):
    """role: "feature", "label", "site", "split" or "dropped"."""

    name: str
    dtype: str
    role: str
    missing: int
    low: float | None = None
    high: float | None = None
    values: list[str] = []


class DatasetVersion(Record, frozen=True, kw_only=True):
    """An immutable table. parents: the "name@version" it was made from, and `how`."""

    name: str
    version: int
    sha256: str
    size: int
    rows: int
    columns: list[Column]
    label: str
    site: str
    split: str
    parents: list[str]
    how: str
    created_at: float
    created_by: str
    sites: dict[str, int] = {}

    @property
    def ref(self) -> str:
        return f"{self.name}@{self.version}"
