"""What programs with a session of their own report of a release on trial."""

from typing import Protocol

import msgspec

from shoal.agent.serving.vitals import Vitals


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """One session's word.

    sha256    of the manifest that it serves; "" for none
    vitals    since it serves that; before  what the release before had done there
    refused   sha256 of a manifest that it could not load, and why; "" when it can
    lives     whether the session is still open: one that ended is gone, one that crashed is not
    """

    model: str
    sha256: str = ""
    vitals: Vitals = Vitals()
    before: Vitals = Vitals()
    refused: str = ""
    why: str = ""
    lives: bool = True


class Accounts(Protocol):
    """Asks the sessions on this machine; a session answers within a second. Never raises.

    read   what they have said by now; from the first time on they are asked
    end    the model is not observed any more: nobody is asked, who crashed is forgotten
    """

    def read(self) -> list[Account]: ...
    def end(self, model: str) -> None: ...


class Nobody:
    """Accounts where no program can have a session."""

    def read(self) -> list[Account]:
        return []

    def end(self, model: str) -> None:
        """Nothing to do."""
