"""Variants that an import with a sample has made, as a device probes them."""

import os
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

import digit_graphs
from controllers import make_context, run
from shoal import bundle
from shoal.agent.update.acceptance import judge_probe
from shoal.agent.update.io.probe import SubprocessProber
from shoal.controller.releases import releases
from shoal.controller.training import training
from shoal.profile import profile
from tensor_models import MODEL, slot_of

PROFILE = profile("rpi4")


def test_every_variant_of_an_import_with_a_sample_passes_the_probe_of_a_device(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "controller"
    folder.mkdir()
    ctx = make_context(folder)
    np.savez(tmp_path / "s.npz", input=load_digits().data[:24, None].astype(np.float32))
    onnx = ctx.blobs.put_bytes(digit_graphs.conv().SerializeToString()).sha256
    sample = ctx.blobs.put_file(tmp_path / "s.npz").sha256
    done = run(
        ctx,
        training.start_tensors_import(ctx, actor="ana", model=MODEL, onnx=onnx, sample=sample),
    )
    assert done.error == ""
    manifest, data = releases.manifest_of(ctx, done.result["release"])
    slot = tmp_path / "b"
    slot.mkdir()
    (slot / bundle.MANIFEST).write_bytes(data)
    for file in manifest.files_for(PROFILE.name):
        (slot / file.name).write_bytes(ctx.blobs.read(file.sha256))
    assert bundle.verify(slot, PROFILE.name) == manifest

    prober = SubprocessProber(lambda model, slot: tmp_path / slot, dict(os.environ))
    measured = prober.probe(MODEL, "b", PROFILE, None, slot_of(), lambda: False)
    assert [one.variant for one in measured] == ["int8-u8s8-pc", "fp32"]
    assert all(0 <= one.deviation <= 1 for one in measured)
    assert judge_probe(measured, PROFILE).passed
