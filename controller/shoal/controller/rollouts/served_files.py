"""The model files that devices say they serve, held against their releases."""

import functools
from collections.abc import Sequence

from sqlalchemy import Connection, select

from shoal import manifest as manifests
from shoal.controller.alerts import alerts
from shoal.controller.alerts.records import Draft
from shoal.controller.host.context import Context
from shoal.controller.store.tables import release
from shoal.errors import BundleError, SettingError
from shoal.wire import Installed

_KEY = "served-files/"


def check(
    db: Connection, ctx: Context, device: str, site: str, installed: Sequence[Installed]
) -> None:
    """Raise an alert where a device reports another file than its release has; close it else.

    Of releases that were deleted nothing is known: they are passed over.
    """
    wrong = [one for one in installed if not _is_of_release(db, one)]
    if not wrong:
        alerts.close(db, ctx, f"{_KEY}{device}", "it serves the files of its releases")
        return
    alerts.raise_alert(db, ctx, alert_draft(device, site, wrong), findings=0)


def alert_draft(device: str, site: str, wrong: Sequence[Installed]) -> Draft:
    """Alert of a device whose files are not those of the releases that it says it serves."""
    named = ", ".join(f"{one.release} ({one.variant}: {one.sha256[:12]})" for one in wrong[:5])
    return Draft(
        key=f"{_KEY}{device}",
        kind="device",
        severity="critical",
        title=f"{device} serves a model that is not its release's",
        detail=(
            f"It reports {named}, a file that the release does not have: its files or its reports "
            "were changed on the device."
        ),
        next_step=(
            "Look at the machine. To have it served again as it was signed: shoal rollout start "
            f"{wrong[0].release}. If it cannot be trusted: shoal device decommission {device}"
        ),
        site=site,
        model=wrong[0].model,
        release=wrong[0].release,
    )


def _is_of_release(db: Connection, one: Installed) -> bool:
    try:
        model, version = manifests.parse_release(one.release)
    except SettingError:
        return False
    mine = (release.c.model == model) & (release.c.version == version)
    data = db.scalar(select(release.c.manifest).where(mine))
    if data is None:
        return True
    return model == one.model and _files(bytes(data)).get(one.variant) == one.sha256


@functools.lru_cache(maxsize=64)
def _files(manifest: bytes) -> dict[str, str]:
    """variant -> SHA-256 of its file."""
    try:
        return {one.name: one.file.sha256 for one in manifests.parse(manifest).variants}
    except BundleError:
        return {}
