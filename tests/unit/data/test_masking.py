"""Masking: what a policy does to columns, and that nothing else is said of a masked table."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from controllers import csv, make_context, numbers
from shoal.controller.data import adding, csv_detection, datasets, masking_policy, table_files
from shoal.controller.data.adding import Upload
from shoal.controller.data.io.masking_keys import MaskingKeys
from shoal.controller.data.masking import Masker
from shoal.controller.data.records import DatasetVersion
from shoal.controller.host.context import Context
from shoal.errors import DatasetError, SettingError

N = 60
POLICY = """
[columns.patient]
rule = "hash"
[columns.name]
rule = "drop"
[columns.zip]
rule = "generalise"
prefix = 2
[columns.ward]
rule = "generalise"
top = 2
[columns.triage]
rule = "generalise"
map = { red = 3, yellow = 2, green = 1 }
[columns.age]
rule = "bucket"
edges = [0, 18, 65]
[columns.weight]
rule = "bucket"
width = 10
[columns.admitted]
rule = "shift"
subject = "patient"
[columns.left]
rule = "shift"
subject = "patient"
"""


def visits() -> dict[str, list[Any]]:
    """Two visits of each of 30 patients."""
    days = pd.date_range("2024-01-01", periods=N)
    return {
        "patient": [f"P{i // 2:04}" for i in range(N)],
        "name": [f"Ada {i}" for i in range(N)],
        "zip": [f"80{i:03}" for i in range(N)],
        "ward": ["a"] * 30 + ["b"] * 20 + ["c"] * 6 + [f"rare{i}" for i in range(4)],
        "triage": ["red", "yellow", "green"] * 20,
        "age": [str(10 + i) for i in range(N)],
        "weight": [f"{50.5 + i:.1f}" for i in range(N)],
        "admitted": [str(day.date()) for day in days],
        "left": [f"{(day + pd.Timedelta(days=3)).date()} 10:30" for day in days],
        "pulse": numbers(seed=1, n=N).tolist(),
        "sick": ["yes", "no"] * 30,
    }


def keys(name: str) -> bytes:
    return (name.encode() * 32)[:32]


Stored = Callable[..., pd.DataFrame]


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    """Stores a table as a CSV or Parquet file is stored, masked; the file read whole."""

    def store(columns: Mapping[str, Any], policy: str = POLICY, **more: Any) -> pd.DataFrame:
        path, target = tmp_path / "in", tmp_path / "out.parquet"
        frame = pd.DataFrame(columns)
        if more.get("parquet"):
            frame.to_parquet(path, index=False)
        else:
            frame.to_csv(path, index=False, sep=more.get("sep", ","))
        masker = Masker(masking_policy.parse(policy), keys)
        table_files.store_table(path, "in", csv_detection.wanted(), target, masker)
        table = pd.read_parquet(target)
        table.attrs["masking"] = masker.outcome()
        return table

    return store


def test_each_rule_does_to_its_column_what_it_says(stored: Stored) -> None:
    table, raw = stored(visits()), pd.DataFrame(visits())
    assert "name" not in table
    assert table["patient"].str.fullmatch("[0-9a-f]{32}").all()
    assert (table.groupby("patient").size() == 2).all()
    assert set(table["zip"]) == {"80"}
    assert table["ward"].value_counts().to_dict() == {"a": 30, "b": 20, "other": 10}
    assert table["triage"].tolist() == [3.0, 2.0, 1.0] * 20
    assert table["age"].tolist() == [0.0] * 8 + [18.0] * 47 + [65.0] * 5
    assert table["weight"].tolist() == [float(w) // 10 * 10 for w in raw["weight"].astype(float)]
    assert table["pulse"].tolist() == raw["pulse"].tolist()
    assert table["sick"].tolist() == raw["sick"].tolist()
    admitted, left = pd.to_datetime(table["admitted"]), pd.to_datetime(table["left"])
    assert (left - admitted == pd.Timedelta("3 days 10:30:00")).all(), "intervals stay"
    moved = (admitted - pd.to_datetime(raw["admitted"])).dt.days
    assert moved.groupby(raw["patient"]).nunique().eq(1).all(), "one number of days for a subject"
    assert moved.between(-180, 180).all()
    assert 0 not in set(moved)
    assert moved.nunique() > 20


def test_a_parquet_file_is_masked_as_the_same_table_in_csv(stored: Stored) -> None:
    one, other = stored(visits()), stored(visits(), parquet=True)
    pd.testing.assert_frame_equal(one, other, check_dtype=False)
    typed = visits() | {
        "patient": [10_000_000_000_000_001 + i for i in range(N - 1)] + [None],
        "admitted": pd.date_range("1955-01-01", periods=N), "age": list(range(N)),
    }  # fmt: skip
    typed["patient"] = pd.array(typed["patient"], dtype="Int64")  # type: ignore[assignment,call-overload]
    table = stored(typed, parquet=True)
    assert table["patient"].nunique() == N - 1, "whole numbers are not rounded"
    assert table["admitted"].str.match(r"19\d\d-\d\d-\d\dT00:00:00").sum() == N - 1


def test_a_value_is_hashed_alike_however_its_number_is_written(stored: Stored) -> None:
    policy = '[columns.id]\nrule = "hash"\n'
    table = stored({"id": ["17", "17.0", " 17", "017", "x", ""], "v": range(6)}, policy)
    ids = table["id"].tolist()
    assert ids[0] == ids[1] == ids[2] != ids[3]
    assert pd.isna(ids[5])
    ids = stored({"id": [17, 18], "v": range(2)}, policy, parquet=True)["id"].tolist()
    assert ids[0] == table["id"][0]
    other = stored({"id": ["17"] * 2, "v": range(2)}, policy + 'key = "b"')
    assert other["id"][0] != ids[0]


def test_what_is_no_number_or_date_is_missing_and_counted(stored: Stored) -> None:
    columns = visits()
    columns["age"][3:5], columns["admitted"][0] = ["Herr Geheim", "n/a"], "Geheimtag"
    table = stored(columns)
    assert table["age"].isna().sum() == 2
    masking = table.attrs["masking"]
    missing = {one.name: one.missing for one in masking.columns if one.missing}
    assert missing == {"age": 1, "admitted": 1}, "n/a was missing before"
    assert {one.name: one.key for one in masking.columns}["patient"] != ""
    assert "Geheim" not in repr(masking)


def test_numbers_with_a_decimal_comma_and_groups_are_put_into_buckets(stored: Stored) -> None:
    policy = '[columns.pay]\nrule = "bucket"\nwidth = 500\n'
    pay = ["1.234,5", "999,25", "12.000,0", "88"]
    table = stored({"pay": pay, "v": [1, 2, 3, 4]}, policy, sep=";")
    assert table["pay"].tolist() == [1000.0, 500.0, 12000.0, 0.0]
    with pytest.raises(DatasetError, match="--decimal ,") as refused:
        stored({"pay": ["1,234", "2,345"], "v": ["a", "b"]}, policy, sep=";")
    assert "1,234" not in str(refused.value)


def test_dates_of_another_format_are_written_in_that_format(stored: Stored) -> None:
    policy = '[columns.day]\nrule = "shift"\nsubject = "who"\nformat = "%d.%m.%Y"\ndays = 1\n'
    table = stored({"who": ["a", "b"], "day": ["24.12.2024", "2024-12-24"]}, policy)
    assert table["day"][0] in ("23.12.2024", "25.12.2024")
    assert pd.isna(table["day"][1])


def test_columns_without_a_rule_are_dropped_where_the_policy_says_so(stored: Stored) -> None:
    policy = 'others = "drop"\n[columns.pulse]\nrule = "keep"\n[columns.ssn]\nrule = "hash"\n'
    assert list(stored(visits(), policy + "optional = true\n")) == ["pulse"]
    with pytest.raises(DatasetError, match="'ssn'"):
        stored(visits(), policy)


def test_a_column_that_is_text_only_in_a_later_batch_is_masked_as_text(
    stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.controller.data.csv_batches.ROWS", 8)
    columns = visits()
    columns["patient"] = [f"{i // 2:04}" for i in range(N - 2)] + ["x1", "x1"]
    columns["pulse"] = [1] * 20 + [1.5] * 40  # which is read twice
    table = stored(columns)
    assert (table.groupby("patient").size() == 2).all()
    assert table["pulse"].dtype == np.float64
    missing = {one.name: one.missing for one in table.attrs["masking"].columns}
    assert set(missing.values()) == {0}, "counted once"


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("patient,v\n" + "Geheim,1,2\n" * 5 + "a,1\n", id="uneven"),
        pytest.param("x\nGeheim,1\nGeheim,2\n", id="header"),
        pytest.param("Geheim,1\nGeheim,2\n", id="none"),
        pytest.param("patient,Geheim,Geheim\na,1,2\n", id="twice"),
        pytest.param(b"patient,v\na,1\nGeheim\xff,2\n", id="encoding"),
        pytest.param('patient,v\nGeheim,"1\n', id="quote"),
        pytest.param(b"PAR1Geheim", id="parquet"),
    ],
)
def test_no_error_about_a_masked_table_quotes_it(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    masker = Masker(masking_policy.parse('[columns.patient]\nrule = "hash"\n'), keys)
    with pytest.raises(DatasetError) as refused:
        table_files.store_table(
            path, "in.csv", csv_detection.wanted(), tmp_path / "out.parquet", masker
        )
    assert "Geheim" not in f"{refused.value} {refused.value.hint} {refused.value.facts}"
    assert refused.value.hint
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("columns = 3", "columns"),
        ("[columns.a", "masking policy"),
        ('[columns.a]\nrule = "hide"', "hide"),
        ('[columns.a]\nrule = "bucket"', "width, or edges"),
        ('[columns.a]\nrule = "bucket"\nedges = [2, 1]', "edges that do not rise"),
        ('[columns.a]\nrule = "generalise"\ntop = 2\nprefix = 1', "exactly one"),
        ('[columns.a]\nrule = "shift"\nsubject = "a"', "own subject"),
        ('[columns.a]\nrule = "hash"\nkey = "../x"', "key"),
        ('[columns.a]\nrule = "hash"\noptional = true', "no column"),
        ('[columns." a"]\nrule = "hash"', "spaces"),
    ],
)
def test_a_wrong_policy_is_refused_with_the_column_and_what_to_do(text: str, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        masking_policy.parse(text)


def test_a_policy_is_written_as_it_is_read() -> None:
    odd = POLICY + '[columns."a \\"b\\u007f"]\nrule = "generalise"\nmap = { "x y" = "z" }\n'
    policy = masking_policy.parse(odd)
    text = masking_policy.to_toml(policy)
    assert masking_policy.parse(text) == policy
    assert masking_policy.to_toml(masking_policy.parse(text)) == text


def test_a_key_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    made = MaskingKeys(tmp_path)("default")
    assert MaskingKeys(tmp_path)("default") == made
    assert MaskingKeys(tmp_path)("other") != made
    path = tmp_path / "keys" / "masking" / "default.key"
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert len(list(path.parent.iterdir())) == 2
    path.write_bytes(b"short")
    with pytest.raises(SettingError, match="has not 32 bytes"):
        MaskingKeys(tmp_path)("default")
    with pytest.raises(SettingError):
        MaskingKeys(tmp_path)("../../pki/ca")


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    return make_context(tmp_path)


def add(ctx: Context, columns: Mapping[str, Any], **more: Any) -> DatasetVersion:
    path = csv(ctx.folder / "in.csv", columns)
    fields = {"label": "sick", "split": "patient", "drop": ["name", "zip", "ward", "admitted"]}
    upload = Upload(path, "in.csv", "visits", **(fields | more))  # type: ignore[arg-type]
    return adding.add_upload(
        ctx, lambda *_: pytest.fail("no items"), MaskingKeys(ctx.folder), actor="ana", upload=upload
    )


def test_a_dataset_keeps_its_policy_until_another_is_given(ctx: Context) -> None:
    policy = POLICY.split("[columns.left]")[0]
    columns = {name: values for name, values in visits().items() if name != "left"}
    first = add(ctx, columns, mask=policy)
    assert first.masking is not None
    assert add(ctx, columns).same_as == "visits@1"
    second = add(ctx, columns | {"pulse": numbers(seed=2, n=N).tolist()})
    assert (second.version, second.masking) == (2, first.masking)
    assert masking_policy.parse(second.masking.policy) == masking_policy.parse(policy)
    with pytest.raises(DatasetError, match="the masking policy drops it"):
        add(ctx, columns, split="name")
    drop = ["name", "zip", "ward", "admitted", "triage"]
    other = add(ctx, columns, mask='[columns.patient]\nrule = "hash"\nkey = "b"\n', drop=drop)
    assert (other.version, len(other.masking.columns)) == (3, 1)  # type: ignore[union-attr]
    again = add(ctx, columns, mask_as="visits@2")
    assert again.same_as == "visits@1"
    bare = add(ctx, columns, no_mask=True, drop=drop)
    assert (bare.version, bare.masking) == (4, None)
    with pytest.raises(SettingError, match="was not masked"):
        add(ctx, columns, mask_as="visits@4")
    with pytest.raises(SettingError, match="several"):
        add(ctx, columns, mask_as="visits@2", no_mask=True)


def test_items_are_not_added_where_a_policy_would_be_passed_over(
    ctx: Context, tmp_path: Path
) -> None:
    table = pa.table({"x": [[1.0, 2.0]] * 4})
    pq.write_table(table, tmp_path / "x.parquet")
    upload = Upload(tmp_path / "x.parquet", "x.parquet", "visits", mask=POLICY)
    with pytest.raises(DatasetError, match="no table"):
        adding.add_upload(
            ctx, lambda *_: pytest.fail("packed"), MaskingKeys(tmp_path), actor="a", upload=upload
        )


def test_columns_that_look_personal_and_have_no_rule_are_reported(ctx: Context) -> None:
    columns = {
        "firstName": ["Ada"] * N, "contact": ["ada@example.org"] * N, "note": ["fine"] * N,
        "employee_no": list(range(N)), "pulse": numbers(seed=1, n=N), "sick": ["yes", "no"] * 30,
    }  # fmt: skip
    drop = ["firstName", "contact", "note", "employee_no"]
    plain = add(ctx, columns, split="", drop=drop)
    found = [f for f in datasets.get_report(ctx, plain.ref).findings if f.check == "personal"]
    assert {f.columns[0] for f in found} == {"firstName", "contact", "employee_no"}
    assert all(f.warns for f in found)
    assert all("--mask" in f.hint for f in found)
    mask = "".join(
        f'[columns.{name}]\nrule = "{rule}"\n'
        for name, rule in (("firstName", "drop"), ("contact", "hash"), ("employee_no", "keep"))
    )
    masked = add(ctx, columns, split="", drop=drop, mask=mask)
    report = datasets.get_report(ctx, masked.ref)
    assert "personal" not in {f.check for f in report.findings}
