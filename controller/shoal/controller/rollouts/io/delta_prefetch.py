"""Prefetch of deltas: has the artifact server make them when a release is signed or rolled out.

The artifact server makes a delta at the first request, which is sent from here, as a device would.
Nothing depends on it: if it fails, the first device waits for the delta.
"""

import logging
from urllib.parse import urlsplit

from shoal.controller.host.context import Context
from shoal.controller.host.io.probes import request_artifact
from shoal.controller.releases import download_urls
from shoal.controller.rollouts import assignments, rollouts
from shoal.controller.store import changes
from shoal.errors import ShoalError

_log = logging.getLogger(__name__)

#: Timeout of a request, and lifetime of its URL, seconds.
_TIMEOUT_S, _LIFE_S = 15.0, 60.0


class DeltaPrefetcher:
    """Follows the controller's changes: call `poll` periodically."""

    def __init__(self, ctx: Context) -> None:
        self._ctx, self._seen = ctx, changes.newest(ctx)
        self._known: set[str] = set()

    def poll(self) -> None:
        """Request the deltas that devices will request after the changes since the last poll."""
        while new := changes.since(self._ctx, self._seen):
            self._seen = new[-1].id
            for release in dict.fromkeys(map(self._release, new)):
                for name in assignments.deltas_of(self._ctx, release) if release else ():
                    self._request(name)

    def _release(self, change: changes.Change) -> str:
        """The release that was signed or is rolled out by a new rollout; "" for none."""
        if change.kind == "rollout" and change.subject not in self._known:
            self._known.add(change.subject)
            return rollouts.get_rollout(self._ctx, change.subject).release
        return change.subject if change.kind == "release" else ""

    def _request(self, name: str) -> None:
        ctx = self._ctx
        try:
            (url,) = download_urls.urls_of(
                ctx.folder, ctx.settings.network, [name], ctx.clock() + _LIFE_S
            ).values()
            path = urlsplit(url)._replace(scheme="", netloc="").geturl()
            request_artifact(ctx.settings.network, ctx.folder / "pki", path, _TIMEOUT_S)
        except ShoalError as error:
            _log.debug("delta prefetch failed: %s", error)
