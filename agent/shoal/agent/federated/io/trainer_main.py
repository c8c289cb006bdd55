"""One job in the trainer's process: train, mask or evaluate.

It reads the sandbox, the task's folder and the device's rows, and writes to the sandbox only.
It has no key, no network address and no slot.
"""

import hashlib
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from shoal.agent.federated import trainer
from shoal.agent.federated.io.row_buffer import read_examples
from shoal.agent.federated.io.sandbox import NEXT, read_vector, write_vector
from shoal.agent.federated.ports import CONTRIBUTION, NUMBERS
from shoal.agent.federated.trainer import (
    GradientTerms,
    Rows,
    Run,
    Tensor,
    TrainingJob,
    TrainingResult,
)
from shoal.agent.installed.round_record import SavedUpdate
from shoal.agent.serving.io.session import import_ort, translated
from shoal.durable import write_durable
from shoal.errors import ModelError, RefusedError
from shoal.federated.clipping import clipped, norm_of
from shoal.federated.compression import compress, with_feedback
from shoal.federated.distributed import encode_privately
from shoal.federated.local import privately
from shoal.federated.masks import U32, add_mask
from shoal.federated.messages import Contribution, Measured
from shoal.federated.noise import Draws
from shoal.federated.scaffold import control_after, shift_of
from shoal.params import F32, TrainSpec, spec_of


class SandboxJob(msgspec.Struct, frozen=True, kw_only=True):
    """A training job with its folders: of the attempt and of the task; and the file of rows."""

    work: TrainingJob
    folder: str
    task: str
    buffer: str


class TrainingContext:
    """Graph, rows and parameters of one job."""

    def __init__(self, job: SandboxJob) -> None:
        self.job, self.config = job, job.work.config
        self.folder, self._task = Path(job.folder), Path(job.task)
        self.run, self.spec, x, y = _open_graph(self.folder / "graph.onnx")
        self.size = self.config.theta.length // 4
        if self.spec.size != self.size:
            raise RefusedError(
                f"theta has {self.size} numbers, {self.spec.size} in the graph", _BAD
            )
        self.theta = self._read("theta")
        self.rows = self._rows(x, y)

    def latest(self, name: str) -> F32 | None:
        """State saved by this round, else by an earlier one; None without any."""
        made = read_vector(self.folder / NEXT / name, self.size)
        return made if made is not None else self.previous(name)

    def previous(self, name: str) -> F32 | None:
        """State saved by an earlier round; None without any."""
        return read_vector(self._task / name, self.size)

    def save(self, name: str, values: F32) -> None:
        """Save state for the task's next round."""
        write_vector(self.folder / NEXT / name, values)

    def control(self) -> F32:
        return self._read("control")

    def personalised(self, theta: F32, own: F32 | None) -> F32:
        """theta with the device's personal parameters."""
        if own is None or not self.config.personal:
            return theta
        mixed = theta.copy()
        for start, stop in self.config.personal:
            mixed[start:stop] = own[start:stop]
        return mixed

    def _read(self, name: str) -> F32:
        found = read_vector(self.folder / name, self.size)
        if found is None or not np.isfinite(found).all():
            raise RefusedError(f"{name} of this round is not {self.size} numbers", _BAD)
        return found

    def _rows(self, x: Tensor, y: Tensor) -> Rows:
        work, features = self.job.work, self.job.work.features
        found = read_examples(Path(self.job.buffer), self.config.model, features)
        rows = trainer.rows_of(found.x, found.labels, work.labels, self.spec, x, y)
        if not len(rows.y):
            raise RefusedError("none of its rows has a label of this model", "few-rows")
        return rows


_BAD = "bad-graph"
_OTHER_FILES = "session.model_external_initializers_file_folder_path"


def train(job: SandboxJob) -> TrainingResult:
    """Train, and write the contribution; secure: the integers, still without masks."""
    context = TrainingContext(job)
    plan, began = context.config.plan, time.process_time()
    order = np.random.default_rng(list(job.work.seed))
    draws = Draws(hashlib.sha256(b"shoal/draws" + job.work.seed).digest())
    reports_loss = plan.secure is None
    loss = (
        trainer.mean_loss(context.run, context.spec, context.theta, context.rows)
        if reports_loss
        else 0.0
    )
    delta, control, steps = _trained(context, order)
    if not np.isfinite(delta).all() or not np.isfinite(loss):
        raise RefusedError("training diverged: its numbers are not finite", "diverged")
    made = TrainingResult(
        rows=len(context.rows.y), loss=loss, steps=steps, norm=norm_of(delta),
        seconds=time.process_time() - began, rss_mb=_peak_mb(),
    )  # fmt: skip
    if plan.secure is not None:
        write_durable(context.folder / NUMBERS, _encoded(context, delta, draws, order).tobytes())
        return made
    update = Contribution(
        update=_compressed(context, delta, draws), examples=made.rows, loss=loss,
        control=b"" if control is None else compress(control, plan.compression, draws),
        steps=steps, seconds=made.seconds,
    )  # fmt: skip
    return msgspec.structs.replace(made, contribution=_save(context.folder, update))


def mask(job: SandboxJob) -> TrainingResult:
    """Add the masks, write the contribution, and delete the unmasked integers."""
    folder = Path(job.folder)
    numbers = np.fromfile(folder / NUMBERS, "<u4").astype(np.uint32, copy=False)
    for one in job.work.masks:
        add_mask(numbers, one.seed, one.sign)
    saved = _save(folder, Contribution(update=numbers.astype("<u4", copy=False).tobytes()))
    (folder / NUMBERS).unlink()
    return TrainingResult(contribution=saved, rss_mb=_peak_mb())


def evaluate(job: SandboxJob) -> TrainingResult:
    """Metrics of theta on this device's rows, in total and by class; and of its personal model."""
    context = TrainingContext(job)

    def metrics(theta: F32, rows: Rows) -> Any:
        return trainer.evaluate(context.run, theta, rows)

    classes = trainer.by_class(context.rows, job.work.labels)
    own = context.latest("ditto" if context.config.ditto else "personal")
    personal = own if context.config.ditto else context.personalised(context.theta, own)
    measured = Measured(
        whole=metrics(context.theta, context.rows),
        classes={name: metrics(context.theta, rows) for name, rows in list(classes.items())[:1024]},
        personal=metrics(personal, context.rows)
        if own is not None and personal is not None
        else None,
    )
    return TrainingResult(measured=measured, rows=len(context.rows.y), rss_mb=_peak_mb())


def _trained(context: TrainingContext, order: np.random.Generator) -> tuple[F32, F32 | None, int]:
    """The update, SCAFFOLD's change of c_i, and the number of steps."""
    plan, spec = context.config.plan, context.spec
    terms = plan.learning.terms
    shared = context.control() if terms.get("shift") else None
    own = None if shared is None else context.previous("control")
    own = np.zeros_like(context.theta) if own is None else own
    term = GradientTerms(
        mu=float(terms.get("mu", 0.0)),
        shift=None if shared is None else shift_of(shared, own),
    )
    start = context.personalised(context.theta, context.previous("personal"))
    learned = trainer.train(context.run, spec, start, context.rows, plan.learning, term, order)
    delta = (learned.theta - start).astype(np.float32)
    control = None
    if shared is not None and np.isfinite(delta).all():
        after = control_after(own, shared, delta, learned.steps, plan.learning.lr)
        context.save("control", after)
        control = after - own
    if context.config.personal:
        context.save("personal", learned.theta)
        for first, stop in context.config.personal:
            delta[first:stop] = 0
    if context.config.ditto:
        _train_ditto(context, order)
    return delta, control, learned.steps


def _train_ditto(context: TrainingContext, order: np.random.Generator) -> None:
    """The device's own model, pulled towards the shared one. Li et al., "Ditto", 2021."""
    own = context.previous("ditto")
    term = GradientTerms(mu=context.config.ditto, anchor=context.theta)
    start = context.theta if own is None else own
    learning = context.config.plan.learning
    after = trainer.train(context.run, context.spec, start, context.rows, learning, term, order)
    if np.isfinite(after.theta).all():
        context.save("ditto", after.theta)


def _compressed(context: TrainingContext, delta: F32, draws: Draws) -> bytes:
    """The update clipped, with local noise, and compressed."""
    plan = context.config.plan
    if plan.privacy is not None:
        if plan.privacy.where == "local":
            delta = privately(delta, plan.privacy, draws)
        else:
            delta = clipped(delta, plan.privacy.clip)
        return compress(delta, plan.compression, draws)
    if plan.compression.kind != "top-k":
        return compress(delta, plan.compression, draws)
    residual = context.previous("residual")
    residual = np.zeros_like(delta) if residual is None else residual
    compensated = with_feedback(delta, residual, plan.compression, draws)
    context.save("residual", compensated.residual.astype(np.float32))
    return compensated.packed


def _encoded(
    context: TrainingContext, delta: F32, draws: Draws, random: np.random.Generator
) -> U32:
    """The update as integers, followed by its weight."""
    plan, privacy = context.config.plan, context.config.plan.privacy
    assert plan.secure is not None
    scale = plan.secure.scale
    if privacy is not None and privacy.where == "distributed":
        return encode_privately(delta, privacy, scale, plan.least, draws)
    if privacy is not None:
        local = privacy.where == "local"
        delta = privately(delta, privacy, draws) if local else clipped(delta, privacy.clip)
    return scale.encode(delta, min(len(context.rows.y), scale.weight), random)


def _save(folder: Path, contribution: Contribution) -> SavedUpdate:
    data = msgspec.msgpack.encode(contribution)
    write_durable(folder / CONTRIBUTION, data, 0o600)
    return SavedUpdate(digest=hashlib.sha256(data).digest(), length=len(data))


def _open_graph(path: Path) -> tuple[Run, TrainSpec, Tensor, Tensor]:
    """The graph's `run`, metadata, and inputs x and y; ModelError when it cannot run."""
    ort = import_ort()
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # External data would be in a folder that cannot exist: a graph reads no other file.
    options.add_session_config_entry(_OTHER_FILES, str(path / "none"))
    try:
        data, where = path.read_bytes(), ["CPUExecutionProvider"]
        session = ort.InferenceSession(data, options, providers=where)
    except Exception as error:
        raise translated(path.name, error) from error
    spec = spec_of(session.get_modelmeta().custom_metadata_map)
    inputs = {one.name: one for one in session.get_inputs()}

    def tensor(name: str) -> Tensor:
        if name not in inputs or not all(isinstance(n, int) for n in inputs[name].shape[1:]):
            raise ModelError(f"{path.name}: no input {name!r} of a fixed shape", "export it again")
        return Tensor(inputs[name].type, tuple(inputs[name].shape[1:]))

    return session.run, spec, tensor("x"), tensor("y")


def _peak_mb() -> float:
    """Peak resident memory of this process, MB; 0 without /proc."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration, ValueError):
        return 0.0
