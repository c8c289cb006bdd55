"""Builds the context of a process: its adapters, clock and randomness."""

import random
import time
from functools import partial
from pathlib import Path

from shoal.controller.access import audit
from shoal.controller.federated.planning import tasks
from shoal.controller.host import settings
from shoal.controller.host.context import Context
from shoal.controller.operations import operations
from shoal.controller.releases.io.blobs import Blobs
from shoal.controller.releases.io.signing import Signer
from shoal.controller.releases.records import Built
from shoal.controller.runs.records import KINDS
from shoal.controller.store.io.database import Store, url_of
from shoal.controller.training import training
from shoal.controller.training.jobs import (
    Job,
    ReportProgress,
    TensorsJob,
    TrainGraph,
    TrainGraphJob,
)


def open_context(folder: Path) -> Context:
    """The context of the controller in `folder`; SettingError if none was made there.

    Opening it brings the database's schema up to date.
    """
    configured = settings.load(folder)
    store = Store.open(url_of(folder, configured))
    return Context(
        folder=folder,
        settings=configured,
        store=store,
        blobs=Blobs(folder / "blobs"),
        signer=Signer.open(folder, audit_head=lambda: audit.head(store)._asdict()),
        clock=time.time,
        random=random.Random(),
    )


def operation_kinds() -> dict[str, operations.Work]:
    """Operation kind -> its work."""
    builder = LazyModelBuilder()
    builds = dict.fromkeys(KINDS, partial(training.perform, builder))
    return {**builds, tasks.FEDERATE: partial(tasks.perform, builder)}


class LazyModelBuilder:
    """shoal.controller.training.jobs.ModelBuilder that loads its libraries with the first job.

    scikit-learn and onnx are 200 MB that web and engine never need.
    """

    def build(self, job: Job, progress: ReportProgress) -> Built:
        from shoal.controller.training.io.build import build

        return build(job, progress)

    def build_tensors(self, job: TensorsJob, progress: ReportProgress) -> Built:
        from shoal.controller.training.io.build_tensors import build_tensors

        return build_tensors(job, progress)

    def environment(self) -> dict[str, str]:
        from shoal.controller.training.io.environment import environment

        return environment()

    def derive(self, job: TrainGraphJob) -> TrainGraph:
        from shoal.controller.training.io.train_graph import derive

        return derive(job)
