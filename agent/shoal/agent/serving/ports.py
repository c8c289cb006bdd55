"""Port: loads a release from its slot."""

from typing import Protocol

from shoal.agent.installed.record import Slot
from shoal.agent.serving.runtime_version import Runtime
from shoal.agent.serving.served_model import Engine
from shoal.profile import Profile


class Loader(Protocol):
    """Loads a release from its slot; ModelError names what this runtime cannot do.

    settle   what can wait until it serves: what makes the next start quick, and memory given back
    """

    @property
    def runtime(self) -> Runtime: ...
    def load(self, slot: Slot, profile: Profile) -> Engine: ...
    def settle(self, slot: Slot, profile: Profile) -> None: ...
    def trim(self) -> None: ...
