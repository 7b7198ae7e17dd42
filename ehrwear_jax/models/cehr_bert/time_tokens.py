"""Names the time between visits: the artificial time tokens of CEHR-BERT (Pang et al. 2021).

    weeks   W0 to W3: whole weeks, below 28 days; M0 to M11: whole months of 30 days, below 360; LT: longer
    day     D0 to D1079: days; LT
    mix     D0 to D7: days, up to 7; W2 to W5: weeks begun, up to 30 days; M2 to M12: months begun, up to 360; LT
    none    nothing

In all others W-1 is a visit that begins on a day before that on which the last one ended.
"""

import functools

import numpy as np

IN_VISIT = "i-"  # before a name of "mix": time between days of one visit
_LAST_DAY = 1_080  # of all schemes; from there on a name never changes


def time_token(days: int, scheme: str) -> str:
    """The name of a number of whole days.

    Raises:
      KeyError: there is no such scheme.
    """
    return "W-1" if days < 0 else _RULES[scheme](days)


def _weeks(days):
    if days < 28:
        return f"W{days // 7}"
    return f"M{days // 30}" if days < 360 else "LT"


def _day(days):
    return f"D{days}" if days < 1_080 else "LT"


def _mix(days):
    if days <= 7:
        return f"D{days}"
    if days <= 30:
        return f"W{-(-days // 7)}"
    return f"M{-(-days // 30)}" if days <= 360 else "LT"


_RULES = {"weeks": _weeks, "day": _day, "mix": _mix}


@functools.cache
def names(scheme: str) -> tuple[str, ...]:
    """All names of a scheme, by the days that they stand for."""
    if scheme == "none":
        return ()
    return tuple(dict.fromkeys(time_token(day, scheme) for day in range(-1, _LAST_DAY + 1)))


@functools.cache
def _number_of_day(scheme):
    """Number among `names` of days -1, 0, ..., _LAST_DAY: int64."""
    at = {name: i for i, name in enumerate(names(scheme))}
    return np.array([at[time_token(day, scheme)] for day in range(-1, _LAST_DAY + 1)])


def numbers(days_N: np.ndarray, scheme: str) -> np.ndarray:
    """Places in `names` of numbers of whole days: int64 [N]."""
    return _number_of_day(scheme)[np.clip(days_N, -1, _LAST_DAY) + 1]
