"""Sets the time scales of all parts of a config together: defaults fit records of years, an ICU stay lasts hours."""

import ml_collections

# Options that are lengths of time, in days, at their defaults of records of years
LENGTHS = (
    "joint.network.time_unit_days",
    "joint.network.shortest_period_days",
    "joint.network.gaussian_period_days",
    "joint.context.colocated_days",
    "joint.context.pool_days",
    "joint.context.summary_days",
    "joint.context.interest_days",
    "joint.context.value_spans",
    "joint.context.wear_spans",
    "interpret.histories_days",
    "interpret.slice_days",
)


def set_time_scale(
    config: ml_collections.ConfigDict, unit_days: float, *, window_hours: int, step_minutes: int, spans_days: tuple
) -> None:
    """Makes a config that fits records of years fit shorter or longer ones.

    Args:
      config: changed in place.
      unit_days: factor of every option of LENGTHS: what was a day becomes so much of one, 1/24 an hour.
      window_hours, step_minutes: of config.prepare: length of a wearable window and of a step of its grid.
      spans_days: spans, increasing, of which future codes are predicted and past ones reconstructed
        (config.joint.context.horizons), and which hand-made features are computed over
        (config.evaluate.feature_ranges_days).
    """
    for name in LENGTHS:
        part, _, key = name.rpartition(".")
        target = config
        for step in part.split("."):
            target = target[step]
        length = target[key]
        target[key] = tuple(x * unit_days for x in length) if isinstance(length, tuple) else length * unit_days
    config.prepare.update({"window_hours": window_hours, "step_minutes": step_minutes})
    config.joint.context.horizons = tuple(spans_days)
    config.evaluate.feature_ranges_days = tuple(spans_days)
