"""What goes to devices without a network by hand, and what comes back: words of the API."""

from shoal.controller.store.records import Record


class FolderBlob(Record, frozen=True, kw_only=True):
    """One file of a release. size in bytes; url: of the artifact server, good for some days."""

    sha256: str
    size: int
    url: str


class FolderPlan(Record, frozen=True, kw_only=True):
    """Everything that a folder for these devices holds; shoal.offline_bundle says where.

    ca              SHA-256 of the controller's root certificate, hex
    valid_until_at  until when what is in it may be installed
    metadata        file name -> its text
    parcels         device -> sealed parcel, base64
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
    """What came of one parcel from a device.

    trip, part   which part it is of which export; the last one says how many `parts` there are
    letters   messages in it, of which `fresh` were not here before
    """

    device: str
    made_at: float
    trip: str
    part: int
    parts: int
    letters: int
    fresh: int
