"""What a device keeps to learn from: what agent.toml asks for, what a person adds, and no more."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from real_agents import Process, enrol, put_in_service
from shoal.agent import Session
from shoal.agent.__main__ import main
from shoal.agent.federated.io.row_buffer import BUFFER, RowCollection, open_buffer, read_examples
from shoal.agent.host.io.config import load
from shoal.agent.host.io.folder import LEARNING, SPOOL
from shoal.agent.installed.io.slots import DiskSlots
from shoal.agent.serving.io.row_spool import take
from tensor_models import MODEL, picture, put_tensors, slot_of

FEATURES = ("x0", "x1", "x2", "x3")
TABLE = "x3,x2,x1,x0,kind\n4,3,2,1,a\n8,7,6,5,b\n,7,6,5,b\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An enrolled device that has one release; its agent does not run."""
    folder = enrol(tmp_path).folder
    DiskSlots(folder / "models").point("parts", put_in_service(folder))
    return folder


def labels(folder: Path, verb: str, *given: str) -> str:
    result = CliRunner().invoke(main, ["labels", verb, *given, "--folder", str(folder)])
    return f"{result.exit_code}: {result.output.strip()}"


def rows_of(folder: Path) -> tuple[np.ndarray, list[str]]:
    found = read_examples(folder / LEARNING / BUFFER, "parts", FEATURES)
    return found.x, found.labels


def test_a_table_is_taken_in_as_the_model_reads_it(folder: Path) -> None:
    table = folder / "of-today.csv"
    table.write_text(TABLE)
    said = labels(folder, "add", str(table), "--column", "kind")
    assert said.startswith("0:")
    assert "2 rows of parts, 1 left out: a value is missing" in said
    x, named = rows_of(folder)
    assert x.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert named == ["a", "b"]
    listed = json.loads(labels(folder, "list", "--json")[3:])
    assert listed[0]["labels"] == {"a": 1, "b": 1}
    assert labels(folder, "clear", "--yes") == "0: 2 rows deleted"
    assert "no rows are kept" in labels(folder, "list")


@pytest.mark.parametrize(
    ("text", "given", "told"),
    [
        ("x0,x1,x2,x3,label\n1,2,3,4,z\n", [], "parts knows no 'z'"),
        ("u,v,label\n1,2,a\n", [], "no row has every value"),
        ("x0,x1,x2,x3,label\n1,2,3,4,a\n", ["--model", "other"], "no release that serves 'other'"),
        ("x0,x1,x2,x3\n1,2,3,4\n", [], "label"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_with_what_to_do(
    folder: Path, text: str, given: list[str], told: str
) -> None:
    table = folder / "wrong.csv"
    table.write_text(text)
    said = labels(folder, "add", str(table), *given)
    assert said.startswith("1:")
    assert told in said
    assert not (folder / LEARNING / BUFFER).exists() or len(rows_of(folder)[0]) == 0


def test_a_release_of_tensors_has_no_rows_to_label(folder: Path) -> None:
    slots = DiskSlots(folder / "models")
    put_tensors(slots.path(MODEL, "a"), picture())
    slots.point(MODEL, slot_of())
    table = folder / "of-today.csv"
    table.write_text(TABLE)
    said = labels(folder, "add", str(table), "--column", "kind", "--model", MODEL)
    assert said.startswith("1:")
    assert "any@1 takes tensors (picture), not rows" in said


def test_what_is_neither_a_table_nor_a_pair_is_refused(folder: Path) -> None:
    assert "'nonsense' is neither" in labels(folder, "add", "nonsense")
    assert "no row served under id 'lot-9'" in labels(folder, "add", "lot-9=a")


def configure(folder: Path, keep: str) -> None:
    settings = folder / "agent.toml"
    settings.write_text(settings.read_text() + f'\n[learning]\nkeep = "{keep}"\n')


@pytest.fixture
def agent(folder: Path, request: pytest.FixtureRequest) -> Iterator[Process]:
    configure(folder, request.param)
    process = Process(folder)
    yield process
    process.end(signal.SIGKILL)


def ask(agent: Process, asked_id: str) -> None:
    tensor = {"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
    body = {"id": asked_id, "inputs": [tensor]}
    assert agent.request("POST", "/v2/models/parts/infer", body)[0] == 200


@pytest.mark.parametrize("agent", ["served"], indirect=True)
def test_a_row_that_was_served_under_an_id_is_labelled_later(agent: Process) -> None:
    agent.wait_until()
    ask(agent, "lot-7")
    agent.wait_for(lambda: labels(agent.folder, "add", "lot-7=b").startswith("0:"))
    x, named = rows_of(agent.folder)
    assert [1, 2, 3, 4] in x[[label == "b" for label in named]].tolist()


@pytest.mark.parametrize("agent", ["labelled"], indirect=True)
def test_rows_of_a_source_that_come_with_their_label_are_kept(agent: Process) -> None:
    agent.wait_until()
    agent.wait_for(lambda: len(rows_of(agent.folder)[0]) >= 20)
    assert {tuple(row) for row in rows_of(agent.folder)[0].tolist()} == {(1, 2, 3, 4), (4, 3, 2, 1)}
    ask(agent, "lot-7")
    agent.end()
    assert json.loads(labels(agent.folder, "list", "--json")[3:])[0]["without"] == 0


@pytest.mark.parametrize("agent", ["nothing"], indirect=True)
def test_no_row_is_kept_by_default(agent: Process) -> None:
    agent.wait_until()
    agent.wait_for(lambda: agent.request("GET", "/status")[1]["models"][0]["requests"] > 50)
    ask(agent, "lot-7")
    agent.end()
    assert labels(agent.folder, "list") == "0: no rows are kept on this device for training"


@pytest.mark.parametrize(("keep", "kept"), [("labelled", 3), ("nothing", 0)])
def test_rows_of_a_programs_own_session_are_kept_with_the_truth_it_knew(
    folder: Path, keep: str, kept: int
) -> None:
    configure(folder, keep)
    with Session("parts", folder) as session:
        session.infer(np.ones((2, 4), np.float32), np.array([1, 0], np.float32))
        session.infer(np.full((1, 4), 2, np.float32), np.array([2], np.float32))
        session.infer(np.full((1, 4), 3, np.float32))
        session.infer(np.full((1, 4), 4, np.float32), np.array([-1], np.float32))
    given = list((folder / SPOOL).glob("*.rows"))
    assert bool(given) == bool(kept)
    buffer = open_buffer(folder / LEARNING, load(folder).learning)
    take(folder / SPOOL, RowCollection(buffer, keep).given)
    buffer.flush()
    x, named = rows_of(folder)
    assert x.tolist() == [[1] * 4, [1] * 4, [2] * 4][:kept]
    assert named == ["b", "a", "c"][:kept]
    assert not list((folder / SPOOL).glob("*.rows"))


def test_what_a_program_hands_over_and_cannot_be_read_is_dropped(folder: Path) -> None:
    (folder / SPOOL).mkdir(exist_ok=True)
    (folder / SPOOL / "1-a.rows").write_bytes(b"nonsense")
    buffer = open_buffer(folder / LEARNING, load(folder).learning)
    take(folder / SPOOL, RowCollection(buffer, "labelled").given)
    assert not list((folder / SPOOL).glob("*.rows"))
    assert buffer.held() == []
