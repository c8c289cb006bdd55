"""Reports of programs that run their own session, on a release that the agent observes."""

from typing import Protocol

import msgspec

from shoal.agent.serving.window import Vitals


class SessionReport(msgspec.Struct, frozen=True, kw_only=True):
    """State of one session.

    sha256    of the manifest of the release that it serves; "" for none
    vitals    since it serves that release; before  those of the previous release there
    refused   sha256 of the manifest of a release that it failed to load; "" for none
    why       it failed
    lives     whether the session is still open; a closed one deletes its report, a crashed one
              does not
    """

    model: str
    sha256: str = ""
    vitals: Vitals = Vitals()
    before: Vitals = Vitals()
    refused: str = ""
    why: str = ""
    lives: bool = True


class SessionReports(Protocol):
    """Reports of the sessions on this machine, each renewed about every second. Never raises.

    read   the reports so far; the first call starts the reporting
    end    stop observing the model: stop the reporting, delete reports of crashed sessions
    """

    def read(self) -> list[SessionReport]: ...
    def end(self, model: str) -> None: ...
