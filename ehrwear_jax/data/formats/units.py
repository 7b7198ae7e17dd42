"""Converts units of wearable channels; EHR values have the user's mapping tables instead."""

_MINUTE = 1 / 60
_G = 9.80665  # m/s2, standard gravity

# unit: (quantity, factor, offset): a value in the quantity's base unit is value * factor + offset
UNITS = {
    **dict.fromkeys(("bpm", "beats/min", "breaths/min", "1/min", "/min", "min-1"), ("rate", _MINUTE, 0.0)),
    **dict.fromkeys(("Hz", "1/s", "/s", "s-1"), ("rate", 1.0, 0.0)),
    **dict.fromkeys(("counts/min", "cpm"), ("counts", _MINUTE, 0.0)),
    "counts/s": ("counts", 1.0, 0.0),
    "g": ("acceleration", _G, 0.0),
    "mg": ("acceleration", _G / 1000, 0.0),
    **dict.fromkeys(("m/s2", "m/s^2", "m/s²", "m s-2"), ("acceleration", 1.0, 0.0)),
    **dict.fromkeys(("degC", "°C", "Cel", "C"), ("temperature", 1.0, 273.15)),
    **dict.fromkeys(("degF", "°F", "[degF]", "F"), ("temperature", 5 / 9, 273.15 - 160 / 9)),
    "K": ("temperature", 1.0, 0.0),
    "s": ("time", 1.0, 0.0),
    "ms": ("time", 1e-3, 0.0),
    **dict.fromkeys(("us", "µs"), ("time", 1e-6, 0.0)),
    "min": ("time", 60.0, 0.0),
    "%": ("share", 0.01, 0.0),
    "1": ("share", 1.0, 0.0),
    "V": ("voltage", 1.0, 0.0),
    "mV": ("voltage", 1e-3, 0.0),
    **dict.fromkeys(("uV", "µV"), ("voltage", 1e-6, 0.0)),
}


def conversion(unit: str, target: str | None) -> tuple[float, float] | None:
    """(factor, offset) that turn a value in `unit` into one in `target`; None if it is not known how."""
    if unit not in UNITS or target not in UNITS or UNITS[unit][0] != UNITS[target][0]:
        return None
    _, factor, offset = UNITS[unit]
    _, target_factor, target_offset = UNITS[target]
    return factor / target_factor, (offset - target_offset) / target_factor
