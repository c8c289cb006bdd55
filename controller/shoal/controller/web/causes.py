"""Why things fail, by the slug that agent, API and console share: a name, and what to do."""

from typing import NamedTuple


class Cause(NamedTuple):
    """name: what it is called; hint: what a person can do about it."""

    name: str
    hint: str


#: Cause slug -> what it is called and what to do about it.
CAUSES: dict[str, Cause] = {
    "golden-mismatch": Cause(
        "Wrong answers on its golden vectors",
        (
            "The model answers differently on this board than where it was built. Leave the "
            "release where it is, rebuild its variant for this profile, and roll out the new "
            "version."
        ),
    ),
    "too-slow": Cause(
        "Slower than its profile allows",
        (
            "Train a smaller model or offer the profile a cheaper variant; if the board was only "
            "throttled, retry once it has cooled."
        ),
    ),
    "too-big": Cause(
        "Needs more memory than its profile allows",
        ("Offer the profile a smaller variant, or move the device to a profile with more memory."),
    ),
    "bad-signature": Cause(
        "Signature is not valid",
        (
            "Nothing was installed. Find out who made this release before doing anything else; "
            "see the audit log."
        ),
    ),
    "stale": Cause(
        "Older than what the device has already seen",
        "Publish the release again with fresh metadata, and check the device's clock.",
    ),
    "misdirected": Cause(
        "Meant for another device or ring",
        ("Candidates run only on canary devices: publish the release, or choose the canary ring."),
    ),
    "download": Cause(
        "Download did not finish",
        (
            "Check the way from the device to the artifact server; the next attempt resumes where "
            "this one ended."
        ),
    ),
    "disk-full": Cause(
        "Disk is full", "Free space on the device; nothing that it served was touched."
    ),
    "unusable-model": Cause(
        "This runtime cannot load the model",
        "Update the agent's onnxruntime, or export the model with an older opset.",
    ),
    "unsupported-profile": Cause(
        "The release has no variant for this profile",
        ("That is no fault of the device. Build a variant for the profile if it should have one."),
    ),
    "unhealthy": Cause(
        "Misbehaved in service",
        "The device went back to its previous release. Compare its windows before and after.",
    ),
    "crash-loop": Cause(
        "Kept crashing after the swap",
        ("The device went back to its previous release. Look at the agent's log around the time."),
    ),
    "deadline": Cause(
        "Did not finish in time",
        ("See whether the device is reachable, then start a rollout for the devices that remain."),
    ),
    "canceled": Cause("Canceled by the controller", "Nothing to do; the device kept what it had."),
    "bad-input": Cause(
        "Input does not fit the model",
        "See which column the source sends wrongly; rows that fit were still answered.",
    ),
    "unsigned-image": Cause(
        "Image size from agent.toml",
        "Import the model with a pipeline that has an image; see docs/sources-and-sinks.md.",
    ),
    "source": Cause("The data source is gone", "Check the sensor or file that feeds the device."),
    "unreadable-message": Cause(
        "Sent a message that cannot be read",
        "Update the agent: it may be of another version. The message was dropped.",
    ),
    "oversize-message": Cause(
        "Sent a message that is too large",
        "Lower the number of features or the window's length.",
    ),
    "decommissioned": Cause(
        "Decommissioned meanwhile", "Nothing to do; enrol it anew to bring it back."
    ),
    "skipped": Cause("Passed over", "See the example for the reason."),
    "aborted": Cause("The rollout was aborted", "Nothing to do; the device keeps what it served."),
    "rollback": Cause(
        "Brought back to its previous release", "Nothing to do: the rollout was rolled back."
    ),
    "untrusted": Cause(
        "Not trusted",
        (
            "Nothing was installed. Run: shoal-agent doctor on the device; it says which role or "
            "time is in question."
        ),
    ),
    "bad-bundle": Cause(
        "The release's files are damaged",
        "Nothing was installed. Check the artifact server's disk, then build the release again.",
    ),
    "storage": Cause("Its disk refused", "Check the device's disk: full, read-only or worn out."),
    "unreachable": Cause(
        "Something is out of reach", "Check the device's network, broker and artifact server."
    ),
    "bad-setting": Cause("A setting is wrong", "Correct agent.toml on the device and restart."),
    "bad-dataset": Cause("Its data cannot be read", "Check the file that the source reads."),
    "sketch-mismatch": Cause(
        "Its window does not fit its release",
        "Update the agent; if it is new already, see the controller's log.",
    ),
    "conflict": Cause("Not in a state that allows this", "Look again: something else came first."),
    "not-found": Cause("Something is gone", "See the detail for what is missing."),
    "denied": Cause("Not allowed", "Check the device's certificate with: shoal-agent doctor."),
    "round-refused": Cause(
        "Took no part in a federated round",
        "The device's own minimums say no: compare the round's plan with them, in its detail.",
    ),
    "peer-lied": Cause(
        "A neighbour shared what is not true",
        "Nothing of it was used. Look at that device: its disk may be failing, or it is not ours.",
    ),
    "peer-untrusted": Cause(
        "Another answers at a neighbour's address",
        "Check [peers] address of that device, and who has its address on the plant's network.",
    ),
    "peers-off": Cause(
        "It cannot share downloads",
        "It serves, and downloads for itself. Choose another [peers] port in its agent.toml, and "
        "restart it.",
    ),
    "folder-damaged": Cause(
        "A folder that was brought to it was damaged",
        "Nothing of it was used. Export it again: shoal bundle export; if it happens again, take "
        "another stick.",
    ),
    "folder-imported": Cause(
        "A folder was brought to it", "Nothing to do: the detail says who brought what."
    ),
    "error": Cause("Something went wrong", "See the agent's log around this time."),
}


def cause(slug: str) -> str:
    """What a cause is called."""
    known = CAUSES.get(slug)
    return known.name if known else slug.replace("-", " ").capitalize()


def hint(slug: str) -> str:
    """What to do about a cause; "" when it is not known."""
    known = CAUSES.get(slug)
    return known.hint if known else ""
