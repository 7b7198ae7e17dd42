"""Defines lengths of time. Times are int64 microseconds since 1970-01-01, as timestamp[us] columns store them."""

MINUTE_US = 60_000_000
HOUR_US = 60 * MINUTE_US
DAY_US = 24 * HOUR_US
DAY_MINUTES = 24 * 60
YEAR_DAYS = 365.25  # Julian
MONTH_DAYS = YEAR_DAYS / 12
