"""Records of datasets."""

from shoal.controller.store.records import Record

TABLE = "table"


class Column(Record, frozen=True, kw_only=True):
    """role: "feature", "label", "site", "split" or "dropped"."""

    name: str
    dtype: str
    role: str
    missing: int
    low: float | None = None
    high: float | None = None
    values: list[str] = []


class CsvFormat(Record, frozen=True, kw_only=True):
    """How a CSV file is read.

    separator  one character; "" for the most frequent of , ; tab | in the first line
    decimal    decimal mark, "." or ","
    skip       lines before the header
    thousands  mark between groups of thousands in columns of numbers; "" for none
    uneven     rows that are left out: they have not as many values as the header
    """

    separator: str = ""
    decimal: str = "."
    encoding: str = "utf-8"
    skip: int = 0
    thousands: str = ""
    uneven: int = 0


class MaskedColumn(Record, frozen=True, kw_only=True):
    """What was done to a column before it was stored.

    rule      "drop", "keep", "hash", "generalise", "bucket" or "shift"; how: in words
    missing   values that are missing since: no number, no date, in no category
    key       the first digits of what the key is known by, so that two versions can be compared;
              "" without one
    """

    name: str
    rule: str
    how: str
    missing: int = 0
    key: str = ""


class Masking(Record, frozen=True, kw_only=True):
    """How a table was masked. policy: the document, TOML; columns: those with a rule."""

    policy: str
    columns: list[MaskedColumn]


class LeftOut(Record, frozen=True, kw_only=True):
    """Files or rows that are not in a dataset, for one reason. names: the first of them."""

    reason: str
    count: int
    names: list[str] = []


class TableFinding(Record, frozen=True, kw_only=True):
    """Something in a table that may mislead training.

    check    of cleaning.CHECKS
    warns    metrics or the model are likely wrong because of it
    columns  that it is about; [] for whole rows
    count    rows; rows: numbers of the first of them, from 1, as they are stored
    what, hint   in words: what was found, and what to do
    """

    check: str
    warns: bool
    columns: list[str]
    count: int
    rows: list[int]
    what: str
    hint: str = ""


class CleaningReport(Record, frozen=True, kw_only=True):
    """What was looked for in a table, and found; those that warn first.

    rows     of the table; checks: names of all that was looked for
    more     findings beyond those listed
    """

    rows: int
    checks: list[str]
    findings: list[TableFinding]
    more: int = 0


class ColumnChange(Record, frozen=True, kw_only=True):
    """A column that is not in both tables, or is another. what: "type" or "role"; "" is none."""

    column: str
    what: str
    before: str
    after: str


class ColumnShift(Record, frozen=True, kw_only=True):
    """How a column of two tables is distributed.

    distance   0 to 1: of numbers Kolmogorov's, of text total variation; or of the shares missing,
               if that is more
    differs    whether it is more than chance explains, and than 0.05
    missing_before, missing_after   percent of the rows
    before, after   range and median of numbers; of text the shares that are farthest apart
    """

    column: str
    distance: float
    differs: bool
    missing_before: float
    missing_after: float
    before: str
    after: str


class TableDiff(Record, frozen=True, kw_only=True):
    """What changed from one table to another; rows are the same by the columns that both have.

    added, removed   numbers of the first rows, from 1, that the other table has not
    columns          that changed; shifts: of the columns of both, the farthest apart first
    """

    rows_before: int
    rows_after: int
    rows_same: int
    rows_added: int
    rows_removed: int
    added: list[int]
    removed: list[int]
    columns: list[ColumnChange]
    shifts: list[ColumnShift]


class DatasetDiff(Record, frozen=True, kw_only=True):
    """What changed from one version to another, "name@version" each."""

    before: str
    after: str
    table: TableDiff


class InputSummary(Record, frozen=True, kw_only=True):
    """An array of each item. low, high: least and most of each axis; datatype as of OIP v2."""

    name: str
    datatype: str
    low: list[int]
    high: list[int]


class Contents(Record, frozen=True, kw_only=True):
    """What the items of a dataset are.

    label_kind  "classes", "numbers", "boxes", "" without labels
    classes     items with each class, or boxes of it
    low, high   of labels that are numbers
    formats     files of each format; rates: sounds of each rate, samples a second
    parts       items of each part, where the split was made by a person: train, test
    groups      distinct values of the split column
    left_out    files that are not in it
    notes       what was found and taken for what
    """

    inputs: list[InputSummary]
    label_kind: str = ""
    classes: dict[str, int] = {}
    low: float | None = None
    high: float | None = None
    formats: dict[str, int] = {}
    rates: dict[str, int] = {}
    parts: dict[str, int] = {}
    groups: int = 0
    left_out: list[LeftOut] = []
    notes: list[str] = []


class Packed(Record, frozen=True, kw_only=True):
    """What the stored form of an upload of items holds.

    kind          "images", "audio" or "tensors"; count: of items
    label         where labels are from; site, split: where sites and groups are
    sites         items of each site
    """

    kind: str
    count: int
    label: str
    site: str
    split: str
    sites: dict[str, int]
    contents: Contents


class DatasetVersion(Record, frozen=True, kw_only=True):
    """Immutable rows or items. parents: the "name@version" it was made from, and `how`.

    kind       "table", "images", "audio" or "tensors"
    rows       of a table; items of any other kind
    columns    of a table
    label      of a table its column, "" without one; else where labels are from: "folders",
               "labels.csv: class"
    contents   of items; null for a table
    csv        how the file of a table was read; null for Parquet, and for versions from before it
               was kept
    content_sha256   of the names, types and values of a table, whatever file they came in; "" for
               items, and for versions from before it was kept
    same_as    in an answer to an add: the version that holds the same, which is this one where
               nothing was added; "" where there is none, and in other answers
    left_out   rows of a table that nothing is trained or measured on; those of too many or too few
               values are not among `rows`, the others are
    duplicates   rows of a table that are the same as one before them; they are used
    masking    what was done to columns of a table before it was stored; null for nothing
    erased_at  when its rows were erased because a subject's were among them; 0 for never
    """

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
    kind: str = TABLE
    contents: Contents | None = None
    csv: CsvFormat | None = None
    left_out: list[LeftOut] = []
    duplicates: int = 0
    content_sha256: str = ""
    masking: Masking | None = None
    erased_at: float = 0.0
    same_as: str = ""

    @property
    def ref(self) -> str:
        return f"{self.name}@{self.version}"
