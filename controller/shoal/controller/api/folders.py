"""Routes of the air gap: what is carried to devices without a network, and what comes back."""

import msgspec

from shoal import sealed_message
from shoal.controller.api.routing import Call, RequestModel, Uploads, route
from shoal.controller.offline import folders
from shoal.controller.offline.records import FolderPlan, ParcelReceipt

TAG = "folders"


class NewFolder(RequestModel, frozen=True, kw_only=True):
    """For whom: devices by name, and all of a site."""

    devices: list[str] = msgspec.field(default_factory=list)
    site: str = ""


class ParcelForm(RequestModel, frozen=True, kw_only=True):
    """Nothing is said beside the parcel: it says itself whose it is."""


@route("POST", "/api/v1/folders", role="operator", tag=TAG)
def export_folder(call: Call, body: NewFolder) -> FolderPlan:
    """What a folder for these devices holds; their assignments are signed anew."""
    return folders.export(
        call.ctx, call.services.authority, actor=call.by, names=body.devices, site=body.site
    )


@route("POST", "/api/v1/folders/parcels", role="operator", tag=TAG, limit=2 * sealed_message.LIMIT,
       files={"parcel": "one file of up/DEVICE/ in a folder"})  # fmt: skip
def import_batch(call: Call, form: ParcelForm, files: Uploads) -> ParcelReceipt:
    """Take in what a device without a network has sealed; again is the same, never twice."""
    with files["parcel"].path.open("rb") as file:
        data = file.read(sealed_message.LIMIT + 1)
    return folders.import_batch(call.ctx, call.services.authority, actor=call.by, data=data)
