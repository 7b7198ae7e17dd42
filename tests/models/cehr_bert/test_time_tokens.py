"""Names of the time between visits, by hand at every boundary."""

import numpy as np
import pytest

from ehrwear_jax.models.cehr_bert import time_tokens

BY_HAND = {
    "weeks": {-400: "W-1", -1: "W-1", 0: "W0", 6: "W0", 7: "W1", 13: "W1", 14: "W2", 20: "W2", 21: "W3", 27: "W3",
              28: "M0", 29: "M0", 30: "M1", 59: "M1", 60: "M2", 329: "M10", 330: "M11", 359: "M11", 360: "LT",
              99_999: "LT"},
    "day": {-1: "W-1", 0: "D0", 1: "D1", 360: "D360", 1079: "D1079", 1080: "LT", 99_999: "LT"},
    "mix": {-1: "W-1", 0: "D0", 7: "D7", 8: "W2", 14: "W2", 15: "W3", 28: "W4", 29: "W5", 30: "W5", 31: "M2",
            60: "M2", 61: "M3", 359: "M12", 360: "M12", 361: "LT"},
}  # fmt: skip


@pytest.mark.parametrize("scheme", BY_HAND)
def test_boundaries_by_hand(scheme):
    days = np.array(list(BY_HAND[scheme]))
    names = time_tokens.names(scheme)
    assert [names[i] for i in time_tokens.numbers(days, scheme)] == list(BY_HAND[scheme].values())
    assert [time_tokens.time_token(int(day), scheme) for day in days] == list(BY_HAND[scheme].values())


def test_numbers_are_those_of_the_rule_and_every_name_occurs_once():
    days = np.arange(-20, 1500)
    for scheme, n in (("weeks", 1 + 4 + 12 + 1), ("day", 1 + 1080 + 1), ("mix", 1 + 8 + 4 + 11 + 1)):
        names = time_tokens.names(scheme)
        assert len(names) == len(set(names)) == n
        found = [names[i] for i in time_tokens.numbers(days, scheme)]
        assert found == [time_tokens.time_token(int(day), scheme) for day in days] and set(found) == set(names)
