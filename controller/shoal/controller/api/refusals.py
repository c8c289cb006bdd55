"""What does not fit its struct, as the API refuses it."""

from typing import Any

import msgspec

from shoal.controller.federated.records import NAME_PATTERN
from shoal.errors import InputError
from shoal.validation_errors import misfit

#: Pattern -> what it asks for.
_PATTERNS = {
    NAME_PATTERN: "lower-case letters, digits and hyphens, 63 at most, no hyphen at either end"
}


def refused(what: str, error: msgspec.ValidationError, kind: Any) -> InputError:
    """what: "body", "query" or "form"; kind: the struct that it was to be."""
    found = misfit(error, kind)
    where = ": ".join(filter(None, (what, found.where)))
    for pattern, asked in _PATTERNS.items():
        if repr(pattern) in found.what:
            return InputError(f"{where}: not a name", f"write it with {asked}")
    return InputError(f"{where}: {found.what}", found.hint)
