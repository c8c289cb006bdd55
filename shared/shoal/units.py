"""Units of measurement and linear conversions between them.

    >>> gain, bias = conversion("°F", "°C")
    >>> round(212 * gain + bias, 9)
    100.0

Sources: the SI Brochure (9th edition, 2019) and NIST SP 811, appendix B.
"""

from typing import NamedTuple

from shoal.errors import SettingError


class Unit(NamedTuple):
    """value · gain + bias is the same in the dimension's base unit."""

    dimension: str
    gain: float
    bias: float = 0.0


UNITS: dict[str, Unit] = {
    "K": Unit("temperature", 1.0),
    "°C": Unit("temperature", 1.0, 273.15),
    "°F": Unit("temperature", 5 / 9, 459.67 * 5 / 9),
    "Pa": Unit("pressure", 1.0),
    "hPa": Unit("pressure", 1e2),
    "mbar": Unit("pressure", 1e2),
    "kPa": Unit("pressure", 1e3),
    "bar": Unit("pressure", 1e5),
    "MPa": Unit("pressure", 1e6),
    "psi": Unit("pressure", 6894.757293168),
    "Hz": Unit("frequency", 1.0),
    "kHz": Unit("frequency", 1e3),
    "rpm": Unit("frequency", 1 / 60),
    "m": Unit("length", 1.0),
    "mm": Unit("length", 1e-3),
    "µm": Unit("length", 1e-6),
    "in": Unit("length", 0.0254),
    "ft": Unit("length", 0.3048),
    "m/s": Unit("speed", 1.0),
    "mm/s": Unit("speed", 1e-3),
    "km/h": Unit("speed", 1 / 3.6),
    "m/s²": Unit("acceleration", 1.0),
    "g": Unit("acceleration", 9.80665),
    "s": Unit("time", 1.0),
    "ms": Unit("time", 1e-3),
    "min": Unit("time", 60.0),
    "h": Unit("time", 3600.0),
    "kg": Unit("mass", 1.0),
    "lb": Unit("mass", 0.45359237),
    "N": Unit("force", 1.0),
    "kN": Unit("force", 1e3),
    "Nm": Unit("torque", 1.0),
    "W": Unit("power", 1.0),
    "kW": Unit("power", 1e3),
    "A": Unit("current", 1.0),
    "mA": Unit("current", 1e-3),
    "V": Unit("voltage", 1.0),
    "mV": Unit("voltage", 1e-3),
    "m³/s": Unit("flow", 1.0),
    "m³/h": Unit("flow", 1 / 3600),
    "l/min": Unit("flow", 1e-3 / 60),
    "1": Unit("ratio", 1.0),
    "%": Unit("ratio", 1e-2),
}
#: Spellings that keyboards and PLCs prefer.
SPELLINGS = {
    "C": "°C", "degC": "°C", "F": "°F", "degF": "°F", "um": "µm", "m/s2": "m/s²",
    "m3/s": "m³/s", "m3/h": "m³/h", "1/min": "rpm", "percent": "%",
}  # fmt: skip


def conversion(given: str, wanted: str) -> tuple[float, float]:
    """gain and bias that take a value in `given` to `wanted`; (1, 0) when either is empty.

    Raises SettingError for an unknown unit or another dimension, unless both are the same text.
    """
    if given == wanted or not given or not wanted:
        return 1.0, 0.0
    start, end = _unit(given), _unit(wanted)
    if start.dimension != end.dimension:
        raise SettingError(
            f"unit {given!r} is {start.dimension}, {wanted!r} is {end.dimension}",
            "a value cannot be converted between them",
        )
    return start.gain / end.gain, (start.bias - end.bias) / end.gain


def _unit(name: str) -> Unit:
    try:
        return UNITS[SPELLINGS.get(name, name)]
    except KeyError:
        raise SettingError(
            f"no unit {name!r}", f"there are: {', '.join(UNITS)}; or use scale and offset"
        ) from None
