"""Causes of failures by slug, as agent, API and console share it: display name and hint."""

from typing import NamedTuple


class Cause(NamedTuple):
    """name: shown for the slug; hint: what a person can do about it."""

    name: str
    hint: str


#: Cause slug -> display name and hint.
CAUSES: dict[str, Cause] = {
    "golden-mismatch": Cause(
        "Wrong outputs on its golden vectors",
        "The model computes differently on this board than where it was built. Do not roll "
        "the release out further, rebuild its variant for this profile, and roll out the "
        "new version.",
    ),
    "too-slow": Cause(
        "Slower than its profile allows",
        "Train a smaller model or offer the profile a cheaper variant; if the board was only "
        "throttled, retry once it has cooled.",
    ),
    "too-big": Cause(
        "Needs more memory than its profile allows",
        "Offer the profile a smaller variant, or move the device to a profile with more memory.",
    ),
    "bad-signature": Cause(
        "Signature is not valid",
        "Nothing was installed. Find out who made this release before doing anything else; "
        "see the audit log.",
    ),
    "revoked": Cause(
        "Revoked: it must never run again",
        "Nothing was installed. If you did not order it, somebody holds the director's key: "
        "see docs/security.md.",
    ),
    "provenance-mismatch": Cause(
        "Its provenance contradicts its manifest",
        "Nothing was installed. Find out who signed it: the controller packs no such release; "
        "prove a copy with `shoal release verify`.",
    ),
    "stale": Cause(
        "Older than what the device has already seen",
        "Publish the release again with fresh metadata, and check the device's clock.",
    ),
    "misdirected": Cause(
        "Meant for another device or ring",
        "Candidates run only on canary devices: publish the release, or choose the canary ring.",
    ),
    "download": Cause(
        "Download did not finish",
        "Check the network from the device to the artifact server; the next attempt resumes "
        "where this one ended.",
    ),
    "clock": Cause(
        "Its clock is wrong",
        "Signatures have expired by a clock that is ahead. Set the device's clock or enable time "
        "synchronisation (timedatectl set-ntp true); it does not count against the release.",
    ),
    "disk-full": Cause(
        "Disk is full", "Free space on the device; the release that it serves is unchanged."
    ),
    "unusable-model": Cause(
        "This runtime cannot load the model",
        "Update the agent's onnxruntime, or export the model with an older opset.",
    ),
    "unsupported-profile": Cause(
        "The release has no variant for this profile",
        "The device is not at fault. Build a variant for the profile if it should have one.",
    ),
    "outdated-agent": Cause(
        "The agent is too old for this release",
        "The device keeps its release. Update its agent, then start a rollout for it.",
    ),
    "unhealthy": Cause(
        "Unhealthy in service",
        "The device went back to its previous release. Compare its windows before and after.",
    ),
    "crash-loop": Cause(
        "Kept crashing after the swap",
        "The device went back to its previous release. Look at the agent's log around the time.",
    ),
    "deadline": Cause(
        "Did not finish in time",
        "See whether the device is reachable, then start a rollout for the devices that remain.",
    ),
    "canceled": Cause("Canceled by the controller", "Nothing to do; the device keeps its release."),
    "bad-input": Cause(
        "Input does not fit the model",
        "See which column the source sends wrongly; valid rows were still served.",
    ),
    "unsigned-image": Cause(
        "Image size from agent.toml",
        "Import the model with a pipeline that has an image; see docs/sources-and-sinks.md.",
    ),
    "source": Cause(
        "The data source is unavailable", "Check the sensor or file that feeds the device."
    ),
    "unreadable-message": Cause(
        "Sent a message that cannot be read",
        "Update the agent: its version may differ. The message was dropped.",
    ),
    "oversize-message": Cause(
        "Sent a message that is too large",
        "Lower the number of features or the window's length.",
    ),
    "decommissioned": Cause("Decommissioned", "Nothing to do; enrol it again to bring it back."),
    "skipped": Cause("Skipped", "See the example for the reason."),
    "aborted": Cause("The rollout was aborted", "Nothing to do; the device keeps its release."),
    "rollback": Cause(
        "Rolled back to its previous release", "Nothing to do: the rollout was rolled back."
    ),
    "untrusted": Cause(
        "Not trusted",
        "Nothing was installed. Run shoal-agent doctor on the device: it reports the role or "
        "time that fails.",
    ),
    "bad-bundle": Cause(
        "The release's files are damaged",
        "Nothing was installed. Check the artifact server's disk, then build the release again.",
    ),
    "storage": Cause("Disk error", "Check the device's disk: full, read-only or worn out."),
    "unreachable": Cause(
        "A server is unreachable", "Check the device's network, broker and artifact server."
    ),
    "bad-setting": Cause("A setting is wrong", "Correct agent.toml on the device and restart."),
    "bad-dataset": Cause("Its data cannot be read", "Check the file that the source reads."),
    "sketch-mismatch": Cause(
        "Its window does not fit its release",
        "Update the agent; if it is up to date, see the controller's log.",
    ),
    "conflict": Cause(
        "Not in a state that allows this", "Reload: something else changed it first."
    ),
    "not-found": Cause("Not found", "The detail names what is missing."),
    "denied": Cause("Not allowed", "Check the device's certificate with: shoal-agent doctor."),
    "round-refused": Cause(
        "Took no part in a federated round",
        "The plan does not meet the device's own limits: the detail names them.",
    ),
    "peer-lied": Cause(
        "A peer sent wrong data",
        "None of it was used. Check that device: its disk may be failing, or it is not ours.",
    ),
    "peer-untrusted": Cause(
        "Another device answers at a peer's address",
        "Check [peers] address of that device, and which device has its address on the network.",
    ),
    "peers-off": Cause(
        "It cannot share downloads",
        "It serves and downloads by itself. Choose another [peers] port in its agent.toml, and "
        "restart it.",
    ),
    "folder-damaged": Cause(
        "An imported offline bundle was damaged",
        "None of it was used. Export it again: shoal bundle export; if it happens again, use "
        "another USB stick.",
    ),
    "folder-imported": Cause(
        "An offline bundle was imported", "Nothing to do: the detail names user and contents."
    ),
    "error": Cause("Something went wrong", "See the agent's log around this time."),
}


def cause_name(slug: str) -> str:
    """Display name of a cause."""
    known = CAUSES.get(slug)
    return known.name if known else slug.replace("-", " ").capitalize()


def hint(slug: str) -> str:
    """What to do about a cause; "" for an unknown one."""
    known = CAUSES.get(slug)
    return known.hint if known else ""
