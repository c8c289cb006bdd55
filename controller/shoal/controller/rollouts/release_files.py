"""Files of releases that devices need: of their profile, and deltas from what they have."""

from functools import cache

from sqlalchemy import Connection, select

from shoal import manifest as manifests
from shoal.controller.releases import quarantine
from shoal.controller.store.tables import release
from shoal.errors import BundleError
from shoal.manifest import File, Manifest
from shoal.orders import Order

#: Bytes of a file from which a delta is offered.
DELTA_FROM = 16 << 10


class ReleaseFiles:
    """Looks releases up, each once: for one transaction."""

    def __init__(self, db: Connection) -> None:
        self._db = db
        self.manifest = cache(self._manifest)
        self.why_quarantined = cache(self._why_quarantined)
        self.artifacts = cache(self._artifacts)
        self.deltas = cache(self._deltas)

    def _manifest(self, ref: str) -> Manifest | None:
        """Of "model@version"; None if there is none such, or none that can be read."""
        model, version = manifests.parse_release(ref)
        mine = (release.c.model == model) & (release.c.version == version)
        data = self._db.scalar(select(release.c.manifest).where(mine))
        try:
            return manifests.parse(bytes(data or b""))
        except BundleError:
            return None

    def _why_quarantined(self, ref: str) -> str:
        """Why a release is in quarantine; "" if it is not."""
        return quarantine.why_release(self._db, ref)

    def _artifacts(self, order: Order, profile: str) -> frozenset[str]:
        """SHA-256 of the manifest and of every file that a device of `profile` needs of it.

        The manifest alone when it has no files for this profile: the device rejects it.
        """
        manifest = self.manifest(order.release)
        try:
            files = manifest.files_for(profile) if manifest else []
        except BundleError:
            files = []
        return frozenset({order.sha256, *(file.sha256 for file in files)})

    def _deltas(self, ref: str, has: str, profile: str) -> list[tuple[str, str]]:
        """(old, new) SHA-256 of each variant's files of `ref` for which there is an older one.

        has   the release that the device serves, "" for none
        """
        if not has or has == ref:
            return []
        served = self._variants(has, profile)
        return [
            (served[key].sha256, file.sha256)
            for key, file in self._variants(ref, profile).items()
            if key in served and served[key].sha256 != file.sha256 and file.size >= DELTA_FROM
        ]

    def _variants(self, ref: str, profile: str) -> dict[tuple[str, str], File]:
        """(variant, name of a file) -> file, for a device of `profile`."""
        manifest = self.manifest(ref)
        names = manifest.profiles.get(profile, []) if manifest else []
        variants = [manifest.variant(name) for name in names] if manifest else []
        return {(variant.name, file.name): file for variant in variants for file in variant.files}
