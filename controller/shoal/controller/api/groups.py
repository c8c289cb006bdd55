"""Routes for groups, deviating devices, and what a person decided about one device."""

import msgspec

from shoal.controller.api.routing import Call, Limit, Listing, RequestModel, all_of, route
from shoal.controller.rollouts import groups, overrides
from shoal.controller.rollouts.group_records import DesiredState, Deviation, Group, Override
from shoal.controller.rollouts.records import Selector

TAG = "groups"


class NewGroup(RequestModel, frozen=True, kw_only=True):
    """A name for the devices of a selector; its percent has to be 100."""

    name: str
    select: Selector


class DeviationQuery(RequestModel, frozen=True, kw_only=True):
    """Only those of one group, or in one state: CONVERGING, PAUSED, ROLLOUT, AWAY, FAILED, CANNOT,
    HELD, PINNED, EXCLUDED or KEPT."""

    group: str = ""
    state: str = ""
    cursor: str = ""
    limit: Limit = 100


class Pin(RequestModel, frozen=True, kw_only=True):
    """The release "model@version" that the device is to run, and why."""

    release: str
    reason: str = ""


class Hold(RequestModel, frozen=True, kw_only=True):
    """Why nothing is to be ordered to the device."""

    reason: str = ""


class Exclusion(RequestModel, frozen=True, kw_only=True):
    """The model that the device is to take no release of, and why."""

    model: str
    reason: str = ""


class OfModel(RequestModel, frozen=True, kw_only=True):
    """The model whose pin or exclusion ends."""

    model: str


@route("GET", "/api/v1/groups", role="viewer", tag=TAG)
def list_groups(call: Call) -> Listing[Group]:
    """Groups, and what each runs: the whole fleet first."""
    return all_of(groups.list_groups(call.ctx))


@route("POST", "/api/v1/groups", role="operator", tag=TAG, status=201, repeatable=True,
       location="/api/v1/groups/{name}")  # fmt: skip
def create_group(call: Call, body: NewGroup) -> Group:
    """Name the devices of a selector."""
    return groups.create(call.ctx, actor=call.by, name=body.name, select=body.select)


@route("GET", "/api/v1/groups/<group>", role="viewer", tag=TAG)
def get_group(call: Call, group: str) -> Group:
    """One group, and what it runs since when."""
    return groups.get_group(call.ctx, group)


@route("DELETE", "/api/v1/groups/<group>", role="operator", tag=TAG, status=204)
def delete_group(call: Call, group: str) -> None:
    """Delete a group: its devices run what the group that then decides runs."""
    groups.remove(call.ctx, actor=call.by, name=group)


@route("GET", "/api/v1/deviations", role="viewer", tag=TAG)
def list_deviations(call: Call, query: DeviationQuery) -> Listing[Deviation]:
    """Devices that do not run what they are to run, and why."""
    return Listing(*groups.deviations(call.ctx, **msgspec.structs.asdict(query)))


@route("GET", "/api/v1/devices/<device>/desired", role="viewer", tag=TAG)
def get_desired(call: Call, device: str) -> DesiredState:
    """What a device is to run, by which group or pin, and what it runs."""
    return groups.desired_state(call.ctx, device)


@route("POST", "/api/v1/devices/<device>/pin", role="operator", tag=TAG)
def pin_device(call: Call, device: str, body: Pin) -> Override:
    """Pin a device to a release, whatever its group runs."""
    return overrides.pin(
        call.ctx, actor=call.by, device=device, release=body.release, reason=body.reason
    )


@route("POST", "/api/v1/devices/<device>/unpin", role="operator", tag=TAG, status=204)
def unpin_device(call: Call, device: str, body: OfModel) -> None:
    """End a pin: the device converges on what its group runs."""
    overrides.unpin(call.ctx, actor=call.by, device=device, model=body.model)


@route("POST", "/api/v1/devices/<device>/hold", role="operator", tag=TAG)
def hold_device(call: Call, device: str, body: Hold) -> Override:
    """Order nothing to a device until it is released."""
    return overrides.hold(call.ctx, actor=call.by, device=device, reason=body.reason)


@route("POST", "/api/v1/devices/<device>/release", role="operator", tag=TAG, status=204)
def release_device(call: Call, device: str) -> None:
    """End a hold: the device converges on what it is to run."""
    overrides.release_hold(call.ctx, actor=call.by, device=device)


@route("POST", "/api/v1/devices/<device>/exclude", role="operator", tag=TAG)
def exclude_device(call: Call, device: str, body: Exclusion) -> Override:
    """Have a device take no release of a model by a group or a rollout."""
    return overrides.exclude(
        call.ctx, actor=call.by, device=device, model=body.model, reason=body.reason
    )


@route("POST", "/api/v1/devices/<device>/include", role="operator", tag=TAG, status=204)
def include_device(call: Call, device: str, body: OfModel) -> None:
    """Take an exclusion back."""
    overrides.include(call.ctx, actor=call.by, device=device, model=body.model)
