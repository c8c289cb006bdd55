"""Deltas made before a device asks for them: when a release is signed, or a rollout begins.

The artifact server makes a delta when it is first asked for. So it is asked from here, as a device
would ask it. Nothing depends on that: where it fails, the first device waits for it.
"""

import logging
from urllib.parse import urlsplit

from shoal.controller.host.context import Context
from shoal.controller.host.io.probes import ask_artifacts
from shoal.controller.releases import addresses
from shoal.controller.rollouts import assignments, rollouts
from shoal.controller.store import changes
from shoal.errors import ShoalError

_log = logging.getLogger(__name__)

#: Seconds that the artifact server may take to make a delta, and that an address of one holds.
_PATIENCE_S, _LIFE_S = 15.0, 60.0


class DeltaPrefetcher:
    """Follows a controller's changes: `look` as often as news should be noticed."""

    def __init__(self, ctx: Context) -> None:
        self._ctx, self._seen = ctx, changes.newest(ctx)
        self._known: set[str] = set()

    def poll(self) -> None:
        """Ask for what devices will ask for after the changes since the last look."""
        while news := changes.since(self._ctx, self._seen):
            self._seen = news[-1].id
            for release in dict.fromkeys(map(self._release, news)):
                for name in assignments.deltas_of(self._ctx, release) if release else ():
                    self._ask(name)

    def _release(self, change: changes.Change) -> str:
        """The release that changed, or is rolled out for all that is known here; "" for none."""
        if change.kind == "rollout" and change.subject not in self._known:
            self._known.add(change.subject)
            return rollouts.get_rollout(self._ctx, change.subject).release
        return change.subject if change.kind == "release" else ""

    def _ask(self, name: str) -> None:
        ctx = self._ctx
        try:
            (url,) = addresses.urls_of(ctx, [name], ctx.clock() + _LIFE_S).values()
            path = urlsplit(url)._replace(scheme="", netloc="").geturl()
            ask_artifacts(ctx.settings.network, ctx.folder / "pki", path, _PATIENCE_S)
        except ShoalError as error:
            _log.debug("no delta ahead: %s", error)
