"""The page of each modality: its commands and its programs, run as they are printed."""

import contextlib
import functools
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from broker.served import Api, Served, init
from broker.tensor_rollouts import released, running_agent
from models.test_real_models import ROOT, files, sample_of
from programs import nats_server
from shoal.agent import Client
from training_steps import photo

__all__ = ["files"]
pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.timeout(900)]

PAGES = ROOT / "docs/models"
DETECTOR = "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx"
TURNED = "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx"
VOICE = "silero_vad/data/silero_vad_op18_ifless.onnx"


def blocks(page: str, language: str) -> list[str]:
    text = (PAGES / page).read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def imported(page: str) -> tuple[str, str, str]:
    """Model, file and sample of the page's import."""
    command = re.compile(
        r"shoal model import (\S+) (\S+) --task tensors(?: --steps \S+)?(?: --sample (\S+))?$",
        re.MULTILINE,
    )
    (found,) = command.findall(blocks(page, "sh")[0])
    return found  # type: ignore[no-any-return]


def steps_of(page: str, folder: Path) -> Path:
    """The page's file of steps."""
    path = folder / f"{page}.toml"
    path.write_text(blocks(page, "toml")[0])
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def agent(files: Path, folder: Path) -> Iterator[Path]:
    """Folder of an agent that serves the models of all pages, imported as these say."""
    nats_server()
    subprocess.run([sys.executable, "-c", blocks("text.md", "python")[0]], cwd=folder, check=True)
    served = Served(folder / "controller")
    served.facts = json.loads(init(served.folder, "--json", "--window-s", "1"))
    api = Api(served.start().ready())
    models: dict[str, Any] = {}
    for page, wheel in (("images.md", DETECTOR), ("audio.md", VOICE), ("steps.md", TURNED)):
        model, file, sample = imported(page)
        assert Path(wheel).name == file
        (folder / model).mkdir()
        if page == "audio.md":
            models[model] = files / wheel, sample_of(wheel, files / wheel, folder / model)
            continue
        pictures = folder / model / "pictures.npz"
        np.savez(pictures, image=np.stack([photo(160, 320, seed=seed)[None] for seed in range(6)]))
        models[model] = files / wheel, pictures if sample else None, steps_of(page, folder)
    model, file, sample = imported("text.md")
    models[model] = folder / file, folder / sample
    with running_agent(api, folder / "agent") as running:
        released(api, models)
        yield running
    served.end()


def output_of(code: str, agent: Path, **names: Any) -> str:
    """What a page's program prints; its Client finds the agent of this test."""
    printed = io.StringIO()
    code = code.replace("from shoal.agent import Client\n", "")
    here = {"Client": functools.partial(Client, folder=agent)}
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "page", "exec"), here | names)
    return printed.getvalue()


def test_text_is_found_on_a_picture(
    agent: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label = Image.new("RGB", (320, 160), "white")
    ImageDraw.Draw(label).text((40, 60), "LOT 4711 / 2026-11", fill="black", font_size=28)
    label.save(folder / "label.png")
    monkeypatch.chdir(folder)
    printed = output_of(blocks("images.md", "python")[0], agent)
    first, last = map(int, re.findall(r"\d+", printed))
    assert 40 < first < last < 110


def test_a_line_that_is_upside_down_is_named(
    agent: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Image.new("RGB", (260, 48), "white")
    ImageDraw.Draw(line).text((8, 8), "LOT 4711 KLM", fill="black", font_size=30)
    monkeypatch.chdir(folder)
    for turned, name in ((line, "upright"), (line.rotate(180), "upside down")):
        turned.save(folder / "line.png")
        assert output_of(blocks("steps.md", "python")[0], agent) == f"{name}\n"


def test_speech_is_heard_where_it_is(agent: Path) -> None:
    time = np.arange(16_000) / 16_000
    silence = np.zeros(16_000, np.float32)
    code = blocks("audio.md", "python")[0]
    assert output_of(code, agent, samples=silence).startswith("0 of 31 frames")
    hum = sum(np.sin(2 * np.pi * f * time) / i for i, f in enumerate((120, 240, 360, 480), 1))
    printed = output_of(code, agent, samples=(0.2 * hum).astype(np.float32))
    assert re.fullmatch(r"\d+ of 31 frames are speech\n", printed)


def test_notes_are_sorted(agent: Path) -> None:
    assert output_of(blocks("text.md", "python")[1], agent) == "['leak', 'fine']\n"
