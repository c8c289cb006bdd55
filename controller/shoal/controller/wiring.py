"""Builds the adapters of one process: the only module besides __main__ and app that may."""

import random
import time
from pathlib import Path

from shoal.controller import settings
from shoal.controller.io.blobs import Blobs
from shoal.controller.io.signing import Signer
from shoal.controller.io.store import Store, url_of
from shoal.controller.learning import Built, Derivation, Derived, Job, Say
from shoal.controller.service.context import Context


def open_context(folder: Path) -> Context:
    """The context of the controller in `folder`; SettingError if none was made there.

    Opening it brings the database's schema up to date.
    """
    configured = settings.load(folder)
    return Context(
        folder=folder,
        settings=configured,
        store=Store.open(url_of(folder, configured)),
        blobs=Blobs(folder / "blobs"),
        signer=Signer.open(folder),
        clock=time.time,
        random=random.Random(),
        learning=LateLearning(),
    )


class LateLearning:
    """shoal.controller.learning.Learning whose libraries are loaded with the first job.

    scikit-learn and onnx are 200 MB that web and engine never need.
    """

    def build(self, job: Job, say: Say) -> Built:
        from shoal.controller.io.learning.build import build

        return build(job, say)

    def derive(self, wish: Derivation) -> Derived:
        from shoal.controller.io.learning.derive import derive

        return derive(wish)
