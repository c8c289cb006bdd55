"""Where devices fetch artifacts: capability URLs of the artifact server."""

from collections.abc import Iterable

from shoal.controller.host.context import Context
from shoal.controller.releases import capability
from shoal.errors import SettingError


def urls_of(ctx: Context, artifacts: Iterable[str], until_s: float) -> dict[str, str]:
    """sha256 -> URL that is good until `until_s`, Unix seconds; SettingError without the key."""
    network = ctx.settings.network
    host = network.names[0] if network.names else network.host
    base, key = f"https://{host}:{network.artifacts}", _key(ctx)
    return {sha: capability.make_url(base, key, sha, until_s) for sha in sorted(artifacts)}


def _key(ctx: Context) -> bytes:
    path = ctx.folder / "keys" / "capability.key"
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingError(f"no {path}", "run: shoal-controller init") from error
