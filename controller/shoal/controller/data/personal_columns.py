"""Columns that look as if they told of persons: by their names, and by what is in them."""

import re
from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from shoal.controller.data.records import Column, TableFinding
from shoal.controller.data.stored_tables import StoredTable

#: What it is -> words of a column's name, in English, German, French and Spanish.
_NAMES = {
    "a name": (
        "name|(first|last|full|given|family|middle|maiden|customer|patient|employee|person|user"
        "|contact) ?name|forename|surname|vorname|nachname|familienname|prenom|nom|nombre"
        "|apellidos?"
    ),
    "an e-mail address": "(.* )?(e ?mail|correo|courriel)( address| adresse)?",
    "a telephone number": "(.* )?(tele)?(phone|fon|fono)( ?(number|no|nr))?|mobile|handy|telefax",
    "a date of birth": (
        "(date of )?birth( ?(date|day))?|dob|geburts(datum|tag)|(date de )?naissance|nacimiento"
        "|birthdate|birthday"
    ),
    "an address": "(home |street |postal )?address|street|strasse|adresse|anschrift|direccion",
    "a number of a person": (
        "(patient|patienten|employee|person|personal|citizen|insurance|customer|kunden|subject)"
        " ?(id|no|nr|number|nummer|code)|ssn|social security( number)?|mrn|passport( ?(no|number))?"
        "|iban|steuer ?id|nhs( ?number)?|dni"
    ),
}  # fmt: skip
_NAMED = {what: re.compile(words) for what, words in _NAMES.items()}
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+|[^\W\d_a-zA-Z]+")
#: What it is -> a regular expression (RE2) of its values.
_VALUES = {
    "e-mail addresses": r"^\s*[^@\s]+@[^@\s]+\.[A-Za-z]{2,}\s*$",
    "telephone numbers": r"^\s*(\+|00)[1-9][0-9]{0,2}[ /()0-9-]{6,18}\s*$",
    "account numbers": r"^\s*[A-Z]{2}[0-9]{2}( ?[A-Z0-9]{4}){3,7}( ?[A-Z0-9]{1,3})?\s*$",
}
#: Share of the values that look so.
_MOST = 0.5
_HINT = 'say what is to be done: --mask FILE; with rule = "keep" it is as it should be'


def personal_findings(
    table: StoredTable,
    columns: Sequence[Column],
    ruled: Collection[str],
    make: Callable[..., TableFinding],
) -> Iterator[TableFinding]:
    """Columns without a rule that look personal. ruled: those that have one."""
    for column in columns:
        if column.name in ruled:
            continue
        what = named(column.name)
        what = f"by its name {what}" if what else _found(table, column.name)
        if what:
            rows = ~_missing(table, column.name)
            yield make("personal", [column.name], rows, f"stored unmasked: {what}", _HINT)


def named(column: str) -> str:
    """What a column tells of a person, by its name; "" for nothing.

    >>> named("E-Mail"), named("patientId"), named("first_name"), named("filename")
    ('an e-mail address', 'a number of a person', 'a name', '')
    """
    words = " ".join(_WORDS.findall(column)).lower()
    return next((what for what, names in _NAMED.items() if names.fullmatch(words)), "")


def _found(table: StoredTable, name: str) -> str:
    """What the first values are, if they are of persons."""
    import pyarrow.compute as pc

    if not table.is_text(name):
        return ""
    part = next(table.parts(name)).drop_null()
    for what, pattern in _VALUES.items():
        alike = pc.sum(pc.match_substring_regex(part, pattern)).as_py() or 0
        if len(part) and alike > _MOST * len(part):
            return f"{what} are in it"
    return ""


def _missing(table: StoredTable, name: str) -> npt.NDArray[np.bool_]:
    parts = [part.is_null().to_numpy(zero_copy_only=False) for part in table.parts(name)]
    return np.concatenate(parts)
