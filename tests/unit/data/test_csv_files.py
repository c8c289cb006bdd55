"""CSV files as people have them: what is detected, what is asked for, and in which words."""

import codecs
import re
from pathlib import Path
from typing import Any

import pytest

from controllers import make_context
from shoal.controller.data import csv_batches, csv_detection, datasets, table_files
from shoal.controller.data.records import CsvFormat, DatasetVersion
from shoal.controller.data.stored_tables import StoredTable
from shoal.controller.host.context import Context
from shoal.controller.store.tables import dataset
from shoal.controller.training.io import rows
from shoal.controller.training.jobs import Job
from shoal.errors import DatasetError, SettingError
from shoal.estimators import read_params


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    return make_context(tmp_path)


def parts(separator: str = ",", decimal: str = ".", quote: str = "", plant: str = "east") -> str:
    """40 rows: heat, speed, a plant's name and the label."""
    lines = [separator.join(("heat", "speed", "plant", "ok"))]
    for i in range(40):
        cells = [f"{quote}{i / 8 - 2:.4f}{quote}".replace(".", decimal), f"{i * 7 % 40}", plant]
        lines.append(separator.join((*cells, "good" if i % 2 else "bad")))
    return "\n".join(lines) + "\n"


def add(ctx: Context, content: str | bytes, **asked: Any) -> DatasetVersion:
    path = ctx.folder / "parts.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return datasets.add_dataset(
        ctx, actor="ana", path=path, filename=path.name, name="parts", label="ok",
        drop=["plant"], csv=csv_detection.wanted(**asked),
    )  # fmt: skip


def refusal(ctx: Context, content: str | bytes, **asked: Any) -> str:
    with pytest.raises(DatasetError) as caught:
        add(ctx, content, **asked)
    assert datasets.list_datasets(ctx) == []
    return str(caught.value)


def left_out(made: DatasetVersion) -> dict[str, int]:
    return {one.reason: one.count for one in made.left_out}


def heat(made: DatasetVersion) -> tuple[str, float | None, float | None]:
    column = made.columns[0]
    return column.dtype, column.low, column.high


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("decimal", [".", ","])
def test_separator_and_decimal_mark_are_detected_and_kept(
    ctx: Context, separator: str, decimal: str
) -> None:
    made = add(ctx, parts(separator, decimal, quote='"' if separator == decimal else ""))
    assert made.csv == CsvFormat(separator=separator, decimal=decimal)
    assert heat(made) == ("float64", -2, 2.875)


def test_a_decimal_comma_is_read_for_training_as_it_was_when_the_version_was_added(
    ctx: Context,
) -> None:
    made = add(ctx, "exported\n" + parts(";", ",", plant="Köln"), skip=1)
    job = Job(model="m", dataset=made, table=ctx.blobs.path(made.sha256))
    data = rows.prepare(job, read_params("logistic", {}), "classification")
    assert data.features == ["heat", "speed"]
    assert len(data.train.y) + len(data.held.y) == 40
    assert min(data.train.x[:, 0].min(), data.held.x[:, 0].min()) == -2


def test_three_digits_after_a_comma_may_be_thousands_so_it_is_asked(ctx: Context) -> None:
    table = "heat;speed;plant;ok\n" + "1,234;5;east;good\n" * 30 + "2,345;6;east;bad\n" * 30
    words = refusal(ctx, table)
    assert "column 'heat': 1,234 may be a fraction, or a thousand and more" in words
    assert words.endswith("--decimal , for a fraction, --decimal . for thousands")
    assert heat(add(ctx, table, decimal=",")) == ("float64", 1.234, 2.345)
    made = add(ctx, table, decimal=".")
    assert (heat(made), made.csv and made.csv.thousands) == (("float64", 1234, 2345), ",")


def test_a_comma_beside_decimal_points_is_not_taken_for_a_decimal_mark(ctx: Context) -> None:
    table = parts().replace("east", '"0,5"')
    assert add(ctx, table).csv == CsvFormat(separator=",", decimal=".")


def test_what_is_asked_for_is_not_detected(ctx: Context) -> None:
    table = "heat;a|speed;b|plant|ok\n" + "1;2|3;4|east|good\n1;5|3;6|west|bad\n" * 20
    with pytest.raises(DatasetError, match="no column 'ok'"):
        add(ctx, table, separator=";")
    found = csv_detection.wanted(separator="tab")
    assert found.separator == "\t"
    assert csv_detection.wanted(encoding="Latin-1").encoding == "iso8859-1"


@pytest.mark.parametrize(
    ("mark", "encoding", "kept"),
    [
        (codecs.BOM_UTF8, "utf-8", "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le", "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16-be", "utf-16"),
    ],
)
def test_a_byte_order_mark_says_the_encoding(
    ctx: Context, mark: bytes, encoding: str, kept: str
) -> None:
    made = add(ctx, mark + parts(plant="Görlitz").encode(encoding))
    assert made.csv == CsvFormat(separator=",", encoding=kept)
    assert made.columns[0].name == "heat"
    table = table_files.read_frame(ctx.blobs.path(made.sha256), made.ref, made.csv)
    assert set(table["plant"]) == {"Görlitz"}


@pytest.mark.parametrize(
    ("plant", "encoding", "byte"), [("Köln", "cp1252", "0xf6"), ("K\x9dln", "latin-1", "0x9d")]
)
def test_another_encoding_is_named_with_the_first_line_that_shows_it(
    ctx: Context, plant: str, encoding: str, byte: str
) -> None:
    lines = parts().splitlines(keepends=True)
    lines[30] = lines[30].replace("east", plant)
    table = "".join(lines).encode(encoding)
    words = refusal(ctx, table)
    assert f"line 31 is not UTF-8: byte {byte}" in words
    assert f"--encoding {encoding}" in words
    made = add(ctx, table, encoding=encoding)
    assert made.csv
    assert plant in set(table_files.read_frame(ctx.blobs.path(made.sha256), "", made.csv)["plant"])


def test_a_line_far_from_the_beginning_in_another_encoding_is_named_too(ctx: Context) -> None:
    table = (parts() + "1.5,3,east,good\n" * 50_000).encode() + b"1.5,3,K\xf6ln,bad\n"
    assert "line 50042 is not UTF-8: byte 0xf6 after '1.5,3,K'" in refusal(ctx, table)


def test_utf_16_without_a_byte_order_mark_is_read_when_it_is_said(ctx: Context) -> None:
    table = parts().encode("utf-16-le")
    assert "--encoding utf-16-le" in refusal(ctx, table)
    assert add(ctx, table, encoding="utf-16-le").rows == 40


@pytest.mark.parametrize("decimal", [".", ","])
@pytest.mark.parametrize("junk", ["# line 3\n# 2026-01-01\n", "Line 3\n\n\n", "a;b\n,\n\n\n\n"])
def test_lines_before_the_header_are_found_and_the_printed_option_works(
    ctx: Context, junk: str, decimal: str
) -> None:
    table, count = junk + parts(";", decimal), junk.count("\n")
    words = refusal(ctx, table)
    assert "line 1 is not the header" in words
    assert f"as line {count + 1} has: 'heat, speed, plant, ok'" in words
    assert words.endswith(f"--skip {count}")
    made = add(ctx, table, skip=count)
    assert made.csv == CsvFormat(separator=";", decimal=decimal, skip=count)
    assert heat(made) == ("float64", -2, 2.875)


def test_skipping_too_few_lines_says_how_many_there_are(ctx: Context) -> None:
    assert refusal(ctx, "a\nb\nc\n" + parts(), skip=1).endswith("--skip 3")


def test_a_quotation_mark_in_a_skipped_line_opens_no_value(ctx: Context) -> None:
    assert add(ctx, 'a "7 inch\n' + parts(), skip=1).rows == 40


@pytest.mark.parametrize("row", ["1,2,east", "1,2,east,good,5", "7", '1,"2,east,good,5'])
@pytest.mark.parametrize("before", ["", '1,2,"two\nlines",good\n'])
def test_a_row_of_another_width_is_left_out_and_counted_with_its_line(
    ctx: Context, row: str, before: str
) -> None:
    closing = '"\n' if '"' in row else "\n"
    table = parts() + before + row + closing + "1.25,2,east,good\n" * 3
    made = add(ctx, table)
    line = 42 + before.count("\n")
    assert left_out(made) == {"not as many values as columns": 1}
    assert made.left_out[0].names == [f"line {line}"]
    assert made.rows == 43 + bool(before)
    again = table_files.read_frame(ctx.blobs.path(made.sha256), made.ref, made.csv)
    assert len(again) == made.rows
    assert again["heat"].iloc[-1] == 1.25


def test_a_wider_row_right_below_the_header_shifts_no_column(ctx: Context) -> None:
    header, body = parts().split("\n", 1)
    made = add(ctx, f"{header}\n1,2,east,good,5\n{body}")
    assert (made.rows, heat(made)) == (40, ("float64", -2, 2.875))


def test_many_rows_of_another_width_are_a_wrong_format(ctx: Context) -> None:
    words = refusal(ctx, parts() + "1,2,east,good,5\n" * 8)
    assert "8 of 48 rows have not as many values as the header (line 1) has columns" in words
    assert "line 42 has 5 values, the header 4 columns: '1, 2, east, good, 5'" in words


def test_a_value_without_a_closing_quote_is_refused(ctx: Context) -> None:
    table = parts().replace("east", '"east', 5)
    assert "rows have not as many values as the header" in refusal(ctx, table)


GERMAN_EXPORT = (
    "Pr\xfcfstand 7\r\nStand: 01.02.2026\r\n\r\nDrehzahl;Temperatur;Datum;Pr\xfcfer;Ergebnis\r\n"
)


def test_a_german_excel_export_is_read_with_what_its_refusals_print(ctx: Context) -> None:
    rows = "".join(
        f"{1 + i % 3}.{i:03},50;{20 + i},25;0{1 + i % 9}.02.2026;M\xfcller;"
        f"{'gut' if i % 2 else 'aus'}\r\n"
        for i in range(40)
    )
    content = (GERMAN_EXPORT + rows).encode("cp1252")

    def export(**asked: Any) -> DatasetVersion:
        path = ctx.folder / "export.csv"
        path.write_bytes(content)
        return datasets.add_dataset(
            ctx, actor="ana", path=path, filename=path.name, name="bench", label="Ergebnis",
            drop=["Datum", "Pr\xfcfer"], csv=csv_detection.wanted(**asked),
        )  # fmt: skip

    with pytest.raises(DatasetError, match="--encoding cp1252"):
        export()
    with pytest.raises(DatasetError, match="--skip 3"):
        export(encoding="cp1252")
    made = export(encoding="cp1252", skip=3)
    assert made.csv == CsvFormat(
        separator=";", decimal=",", encoding="cp1252", skip=3, thousands="."
    )
    assert [(c.name, c.low, c.high) for c in made.columns[:3]] == [
        ("Drehzahl", 1000.5, 3038.5), ("Temperatur", 20.25, 59.25), ("Datum", None, None)
    ]  # fmt: skip
    again = table_files.read_frame(ctx.blobs.path(made.sha256), made.ref, made.csv)
    assert again["Drehzahl"].tolist()[:2] == [1000.5, 2001.5]


@pytest.mark.parametrize(
    ("value", "decimal", "mark"),
    [
        ('"1,234.5"', ".", ","), ('"1.234,5"', ",", "."), ("1'234.5", ".", "'"),
        ("1\u202f234.5", ".", "\u202f"), ('"1\u00a0234,5"', ",", "\u00a0"),
    ],
)  # fmt: skip
def test_thousands_in_groups_are_numbers_and_the_mark_is_said(
    ctx: Context, value: str, decimal: str, mark: str
) -> None:
    lines = parts(decimal=decimal, quote='"').splitlines(keepends=True)
    made = add(ctx, "".join(lines) + f"{value},1,east,good\n")
    assert made.csv == CsvFormat(separator=",", decimal=decimal, thousands=mark)
    assert heat(made) == ("float64", -2, 1234.5)


def test_dates_and_versions_are_not_taken_for_grouped_thousands(ctx: Context) -> None:
    table = parts(";", ",").replace("east", "01.02.2026").replace("good", "1.234.5")
    made = add(ctx, table)
    assert made.csv == CsvFormat(separator=";", decimal=",")


def test_two_separators_that_fit_alike_are_asked_for(ctx: Context) -> None:
    table = "heat;a,b|ok\n" * 1 + "x;y,z|u\n" * 30
    words = refusal(ctx, table)
    assert 'may be separated by "," or ";"' in words
    assert "say which: --separator" in words


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\n\n\n", "is empty"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "binary, not text"),
        (b"PK\x03\x04workbook", "an Excel workbook .* save the sheet as CSV UTF-8"),
        (parts().encode("utf-32"), "cannot be read|no column"),
        (b"\xff" * 5_000, "--encoding"),
        (b'"' * 200_001, "cannot be read|no column"),
    ],
)
def test_a_file_that_is_no_table_is_refused_with_what_it_is(
    ctx: Context, content: bytes, words: str
) -> None:
    assert re.search(words, refusal(ctx, content))


def test_a_value_beyond_float32_is_infinite_for_a_model(ctx: Context) -> None:
    made = add(ctx, parts() + "1e300,1,east,good\n")
    assert left_out(made) == {"infinite value": 1}


def test_a_header_that_misses_a_name_does_not_shift_the_columns(ctx: Context) -> None:
    table = parts().replace("heat,speed", "speed", 1)
    words = refusal(ctx, table)
    assert "the header (line 1) has 3 columns, and line 2 has 4 values" in words
    assert "name every column in line 1" in words


def test_blank_lines_and_a_missing_last_value_are_no_uneven_rows(ctx: Context) -> None:
    made = add(ctx, parts() + "\n1,2,east,\n  \n1,2,east,good\n\n")
    assert (made.rows, left_out(made)) == (42, {"label missing": 1})


def test_a_column_without_a_value_is_named_and_can_be_dropped(ctx: Context) -> None:
    table = "".join(
        f"{line},{'spare' if i == 0 else ''}\n" for i, line in enumerate(parts().splitlines())
    )
    assert refusal(ctx, table) == "spare has no value in any row; --drop spare"


def test_rows_that_are_not_used_are_counted_by_reason(ctx: Context) -> None:
    made = add(
        ctx, parts() + "inf,1,east,good\n1,,east,bad\n,2,east,bad\n-inf,,east,\n9,9,east,bad\n" * 2
    )
    assert left_out(made) == {"label missing": 2, "infinite value": 2, "value missing": 4}
    assert made.duplicates == 5
    job = Job(model="m", dataset=made, table=ctx.blobs.path(made.sha256))
    data = rows.prepare(job, read_params("logistic", {}), "classification")
    assert data.left_out == left_out(made)


def test_rows_that_differ_in_text_only_are_no_duplicates(ctx: Context) -> None:
    table = parts() + "9,9,east,bad\n9,9,west,bad\n9,9,west,bad\n"
    assert add(ctx, table).duplicates == 1


def test_a_version_from_before_formats_were_kept_is_read_as_then(ctx: Context) -> None:
    made = add(ctx, parts(";"))
    with ctx.store.write() as db:
        db.execute(dataset.update().values(csv=None))
    old = datasets.get_dataset(ctx, "parts")
    assert old.csv is None
    assert len(table_files.read_frame(ctx.blobs.path(old.sha256), old.ref, old.csv)) == 40
    assert add(ctx, parts(";")).ref == made.ref == "parts@1"


def test_the_same_file_read_in_another_way_is_another_version(ctx: Context) -> None:
    table = parts(";", ",", plant="Köln")
    assert add(ctx, table).version == add(ctx, table, decimal=",").version == 1
    assert add(ctx, table, encoding="latin-1").version == 2


LATE_ROWS = {
    "text among numbers": ("x7,1,east,good", {"heat": "str"}),
    "a fraction among whole numbers": ("1,1.5,east,good", {"speed": "float64"}),
    "a value missing among whole numbers": ("1,,east,good", {"speed": "float64"}),
    "a number beyond 64 bits": (f"1,{10**30},east,good", {"speed": "str"}),
    "thousands in groups": ('1,"3,456.5",east,good', {"speed": "float64"}),
    "truth among text": ("1,2,True,good", {"plant": "str"}),
    "a row of another width": ("1,2", {"heat": "float64"}),
}


@pytest.mark.parametrize(("row", "types"), LATE_ROWS.values(), ids=LATE_ROWS.keys())
def test_a_column_has_one_type_whatever_part_of_the_file_shows_it(
    ctx: Context, monkeypatch: pytest.MonkeyPatch, row: str, types: dict[str, str]
) -> None:
    monkeypatch.setattr(csv_batches, "ROWS", 16)
    path = ctx.folder / "parts.csv"
    path.write_text(parts() + row + "\n" + "2,3,007,good\n" * 20)
    target = ctx.folder / "parts.parquet"
    reading = table_files.store_table(path, "parts.csv", csv_detection.wanted(), target)
    with StoredTable(target) as stored:
        assert {name: str(stored[name].dtype) for name in types} == types
        whole = table_files.read_frame(path, "parts.csv", reading.how)
        assert len(stored) == len(whole)
        for name in stored.columns:
            assert stored[name].dropna().astype(str).tolist() == [
                str(v) for v in whole[name].dropna()
            ]
        assert set(stored["plant"]) >= {"east", "007"}  # text keeps its zeros


def test_truth_with_missing_values_stays_truth(
    ctx: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_batches, "ROWS", 16)
    head, *lines = parts().splitlines()
    values = ["True"] * 16 + [""] * 16 + ["False"] * 8
    path, target = ctx.folder / "parts.csv", ctx.folder / "parts.parquet"
    rows = [f"{row},{value}" for row, value in zip(lines, values, strict=True)]
    path.write_text("\n".join([f"{head},on", *rows]))
    table_files.store_table(path, "parts.csv", csv_detection.wanted(), target)
    with StoredTable(target) as stored:
        assert (stored.type_of("on"), stored.missing("on")) == ("bool", 16)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"separator": ";;"}, 'such as: --separator ";"'),
        ({"separator": "a"}, "separator 'a'"),
        ({"decimal": ";"}, "--decimal . or --decimal ,"),
        ({"encoding": "klingon"}, "unknown encoding 'klingon'; such as utf-8"),
        ({"encoding": "base64"}, "unknown encoding"),
        ({"encoding": "punycode"}, "unknown encoding"),
        ({"skip": -1}, "skip -1"),
    ],
)
def test_a_format_that_cannot_be_is_refused(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words.replace(".", r"\.")):
        csv_detection.wanted(**asked)
