"""What does not fit is told by name, with what there is instead."""

from enum import Enum
from typing import Literal

import msgspec
import pytest

from shoal.validation_errors import FieldError, field_error, setting_error


class Colour(Enum):
    RED, BLUE = "red", "blue"


class Noise(msgspec.Struct, forbid_unknown_fields=True):
    where: Literal["central", "local"]
    colour: Colour | None = None


class Plan(msgspec.Struct, forbid_unknown_fields=True):
    noise: Noise | None = None
    tables: dict[str, Noise] = {}


FIELDS = "there are: noise, tables"
WITHIN = "there are: where, colour"


@pytest.mark.parametrize(
    ("given", "told"),
    [({"nois": 1}, FieldError("", "unknown field 'nois'", FIELDS)),
     ({"noise": {"were": 1}}, FieldError("noise", "unknown field 'were'", WITHIN)),
     ({"noise": {}}, FieldError("noise", "no 'where', which is needed")),
     ({"noise": {"where": "moon"}},
      FieldError("noise.where", "no 'moon'", "there are: central, local")),
     ({"noise": {"where": "local", "colour": "green"}},
      FieldError("noise.colour", "no 'green'", "there are: red, blue")),
     ({"noise": {"where": 3}}, FieldError("noise.where", "Expected `str`, got `int`")),
     ({"tables": {"a": {"were": 1}}}, FieldError("tables[...]", "unknown field 'were'")),
     ([], FieldError("", "Expected `object`, got `array`"))],
)  # fmt: skip
def test_what_does_not_fit_is_named_with_what_there_is(given: object, told: FieldError) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert(given, Plan)
    assert field_error(caught.value, Plan) == told


def test_a_setting_is_named_with_its_file_and_its_part() -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert({"where": "moon"}, Noise)
    error = setting_error("agent.toml", caught.value, Noise, "sources.pump")
    assert str(error) == "agent.toml: sources.pump.where: no 'moon'; there are: central, local"
