"""Routes for offline bundles: export for devices without a network, and import of telemetry."""

import msgspec

from shoal import sealed_message
from shoal.controller.api.routing import Call, RequestModel, Uploads, route
from shoal.controller.offline import folders
from shoal.controller.offline.records import FolderPlan, ParcelReceipt

TAG = "folders"


class NewFolder(RequestModel, frozen=True, kw_only=True):
    """Devices by name, and all devices of a site."""

    devices: list[str] = msgspec.field(default_factory=list)
    site: str = ""


class Carried(RequestModel, frozen=True, kw_only=True):
    """No fields: the sealed message names its device. (The name is the title in OpenAPI.)"""


@route("POST", "/api/v1/folders", role="operator", tag=TAG)
def export_folder(call: Call, body: NewFolder) -> FolderPlan:
    """Contents of an offline bundle for these devices; their assignments are signed again."""
    return folders.export(
        call.ctx, call.services.authority, actor=call.by, names=body.devices, site=body.site
    )


@route("POST", "/api/v1/folders/parcels", role="operator", tag=TAG, limit=2 * sealed_message.LIMIT,
       files={"parcel": "one file of up/DEVICE/ in a folder"})  # fmt: skip
def import_parcel(call: Call, form: Carried, files: Uploads) -> ParcelReceipt:
    """Import a sealed message of a device without a network; a repeated one counts once."""
    with files["parcel"].path.open("rb") as file:
        data = file.read(sealed_message.LIMIT + 1)
    return folders.import_batch(call.ctx, call.services.authority, actor=call.by, data=data)
