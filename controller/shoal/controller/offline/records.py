"""Records of offline bundles."""

from shoal.controller.store.records import Record


class FolderBlob(Record, frozen=True, kw_only=True):
    """One file of a release. size in bytes; url: of the artifact server, valid for some days."""

    sha256: str
    size: int
    url: str


class FolderPlan(Record, frozen=True, kw_only=True):
    """Contents of an offline bundle for these devices; shoal.offline_bundle has the layout.

    ca              SHA-256 of the controller's root certificate, hex
    valid_until_at  the releases in it may be installed until then
    metadata        file name -> text
    parcels         device -> sealed message, base64
    """

    ca: str
    made_at: float
    valid_until_at: float
    devices: list[str]
    releases: list[str]
    metadata: dict[str, str]
    parcels: dict[str, str]
    blobs: list[FolderBlob]


class ParcelReceipt(Record, frozen=True, kw_only=True):
    """Result of the import of one sealed message from a device.

    trip, part   the export and its part; the last part has the number of `parts`
    letters   messages in it, of which `fresh` were not stored before
    """

    device: str
    made_at: float
    trip: str
    part: int
    parts: int
    letters: int
    fresh: int
