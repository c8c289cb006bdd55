"""Tables from users: rows fit to train on are kept, the rest is reported with a hint."""

import gzip
from pathlib import Path

import pytest

from controllers import OTHER_CONDITIONS, add_digits, csv, make_context, numbers, shared_data
from shoal.controller.access import audit
from shoal.controller.data import datasets, frames, table_files
from shoal.controller.data.records import DatasetVersion
from shoal.controller.host.context import Context
from shoal.controller.store.tables import dataset
from shoal.errors import AbsentError, DatasetError, SettingError


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    return make_context(tmp_path)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Two numeric features, a text column, a site and a label, 60 rows."""
    return csv(
        tmp_path / "t.csv",
        {
            "heat": numbers(seed=1),
            "speed": numbers(seed=2),
            "serial": [f"x{i}" for i in range(60)],
            "plant": [100.0 if i % 2 else 20.0 for i in range(60)],
            "leak": [i % 3 for i in range(60)],
        },
    )


def add(ctx: Context, path: Path, **more: object) -> DatasetVersion:
    roles = {"name": "rig", "label": "leak", "site": "plant", "drop": ["serial"]} | more
    return datasets.add_dataset(ctx, actor="ana", path=path, filename=path.name, **roles)  # type: ignore[arg-type]


def test_a_table_becomes_a_version_with_its_schema(ctx: Context, table: Path) -> None:
    made = add(ctx, table)
    assert (made.ref, made.rows, made.sites) == ("rig@1", 60, {"20": 30, "100": 30})
    assert {c.name: c.role for c in made.columns} == {
        "heat": "feature", "speed": "feature", "serial": "dropped", "plant": "site",
        "leak": "label",
    }  # fmt: skip
    label, plant = made.columns[4], made.columns[3]
    assert (label.values, label.low, label.high) == (["0", "1", "2"], 0, 2)
    assert plant.values == ["20", "100"]
    assert audit.verify(ctx) == 1


def test_the_same_table_again_is_the_same_version(ctx: Context, table: Path) -> None:
    first, again = add(ctx, table), add(ctx, table)
    assert (first.same_as, again.same_as, again.ref) == ("", "rig@1", "rig@1")
    assert len(datasets.list_datasets(ctx)) == 1


@pytest.mark.parametrize("form", ["gzip", "semicolons", "parquet"])
def test_the_same_rows_in_another_file_are_the_same_version(
    ctx: Context, table: Path, form: str
) -> None:
    first = add(ctx, table)
    if form == "parquet":
        table_files.read_frame(table).to_parquet(table)
    elif form == "gzip":
        table.write_bytes(gzip.compress(table.read_bytes()))
    else:
        table.write_text(table.read_text().replace(",", ";").replace(".", ","))
    again = add(ctx, table)
    assert (again.ref, again.same_as) == ("rig@1", "rig@1")
    assert again.content_sha256 == first.content_sha256 != ""


def test_the_same_rows_under_another_name_are_said_and_stored_once(
    ctx: Context, table: Path
) -> None:
    first, other = add(ctx, table), add(ctx, table, name="copy")
    assert (other.ref, other.same_as, other.sha256) == ("copy@1", "rig@1", first.sha256)


def test_a_table_stored_as_it_was_uploaded_is_still_found(ctx: Context, table: Path) -> None:
    made = add(ctx, table)
    blob = ctx.blobs.put_file(table, datasets.LIMIT)
    with ctx.store.write() as db:
        db.execute(dataset.update().values(content_sha256="", sha256=blob.sha256))
    assert add(ctx, table).same_as == made.ref
    table.write_text(table.read_text() + "1,2,y,20.0,0\n")
    assert add(ctx, table).ref == "rig@2"


def test_other_roles_or_other_bytes_are_a_new_version(ctx: Context, table: Path) -> None:
    assert add(ctx, table).version == 1
    assert add(ctx, table, site="", drop=["serial", "plant"]).version == 2
    table.write_text(table.read_text() + "1,2,y,20.0,0\n")
    assert add(ctx, table).version == 3
    assert datasets.get_dataset(ctx, "rig").version == 3
    assert datasets.get_dataset(ctx, "rig@1").version == 1


def test_the_lineage_of_a_version_is_stored(ctx: Context, table: Path) -> None:
    add(ctx, table)
    table.write_text(table.read_text() + "1,2,y,20.0,0\n")
    assert add(ctx, table, parents=["rig@1"], how="labelled on site").parents == ["rig@1"]
    with pytest.raises(AbsentError, match="rig@9"):
        add(ctx, table, parents=["rig@9"])


def test_a_stored_table_is_read_back_unchanged(ctx: Context) -> None:
    made = add_digits(ctx)
    table = table_files.read_frame(ctx.blobs.path(made.sha256), made.ref)
    assert len(table) == made.rows == 1797


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_any_common_delimiter_is_understood(ctx: Context, table: Path, delimiter: str) -> None:
    table.write_text(table.read_text().replace(",", delimiter))
    assert add(ctx, table).rows == 60


def test_a_gzipped_table_is_understood_by_its_bytes(ctx: Context, table: Path) -> None:
    table.write_bytes(gzip.compress(table.read_bytes()))
    assert add(ctx, table).rows == 60


BAD_FILES = {
    "empty": (b"", "empty"),
    "no rows": (b"heat,speed,serial,plant,leak\n", "no rows"),
    "a picture": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256)), "cannot be read"),
    "ragged": (b"heat,leak\n1,0\n1,2,3,4\n", "cannot be read as a table"),
    "a torn gzip": (gzip.compress(b"heat,leak\n" + b"1,0\n" * 999)[:40], "cannot be read"),
    "latin-1": ("heat,leak\n1,größe\n".encode("latin-1"), "UTF-8"),
    "two columns of a name": (b"leak,heat,heat\n1,2,3\n", "label|heat"),
    "Parquet that is none": (b"PAR1 and nothing more", "Parquet|cannot be read"),
}


@pytest.mark.parametrize(("data", "words"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_file_that_is_no_table_is_refused_by_name(
    ctx: Context, tmp_path: Path, data: bytes, words: str
) -> None:
    path = tmp_path / "upload.csv"
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=words) as caught:
        add(ctx, path, site="", drop=[])
    assert caught.value.hint
    assert datasets.list_datasets(ctx) == []


BAD_ROLES = {
    "label is missing": ({"label": "leek"}, "no column 'leek' for label; there are: heat, speed"),
    "no label": ({"label": ""}, "which column is the label"),
    "site is missing": ({"site": "factory"}, "no column 'factory' for site"),
    "drop is missing": ({"drop": ["sreial"]}, "no column 'sreial' for drop"),
    "text as feature": ({"drop": []}, "not numbers: serial; --drop serial"),
    "no features left": ({"drop": ["serial", "heat", "speed"]}, "no feature columns"),
}


@pytest.mark.parametrize(("roles", "words"), BAD_ROLES.values(), ids=BAD_ROLES.keys())
def test_an_error_names_the_wrong_role_and_the_columns_there_are(
    ctx: Context, table: Path, roles: dict[str, object], words: str
) -> None:
    with pytest.raises(DatasetError, match=words):
        add(ctx, table, **roles)


def test_a_label_with_one_value_cannot_be_trained_on(ctx: Context, tmp_path: Path) -> None:
    path = csv(tmp_path / "t.csv", {"heat": numbers(), "leak": [0] * 60})
    with pytest.raises(DatasetError, match="1 distinct value"):
        add(ctx, path, site="", drop=[])


def test_a_gzip_bomb_is_stopped(
    ctx: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_files, "MAX_BYTES", 100_000)
    path = tmp_path / "bomb.csv.gz"
    path.write_bytes(gzip.compress(b"heat,leak\n" + b"1,0\n" * 100_000))
    with pytest.raises(DatasetError, match="when unpacked"):
        add(ctx, path, site="", drop=[])


def test_an_invalid_name_is_refused(ctx: Context, table: Path) -> None:
    with pytest.raises(SettingError, match="dataset name 'Rig 1'"):
        add(ctx, table, name="Rig 1")


def test_the_hydraulic_rig_is_read_as_its_documentation_describes_it(ctx: Context) -> None:
    made = add(
        ctx, shared_data("demo/hydraulic_uci447_features.csv.gz"), label="pump_leak",
        site="cooler_pct", split="group", drop=OTHER_CONDITIONS,
    )  # fmt: skip
    assert (made.rows, list(made.sites)) == (1522, ["100", "20", "3"])
    assert len(frames.features_of(made)) == 56
