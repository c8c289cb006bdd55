"""What every use case is given: the adapters that __main__ built, the clock and the dice."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from shoal.controller.host.settings import Settings

if TYPE_CHECKING:
    from shoal.controller.releases.io.blobs import Blobs
    from shoal.controller.releases.io.signing import Signer
    from shoal.controller.store.io.database import Store
    from shoal.controller.training.jobs import Learning


class Context(NamedTuple):
    """The first argument of every use case.

    folder     the controller's folder
    clock      Unix seconds, UTC
    random     for what is drawn, never for secrets
    learning   trains, quantizes and packs; None in processes that never do
    """

    folder: Path
    settings: Settings
    store: "Store"
    blobs: "Blobs"
    signer: "Signer"
    clock: Callable[[], float]
    random: random.Random
    learning: "Learning | None" = None
