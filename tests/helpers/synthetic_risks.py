"""What a table of risks promises about the outcomes that are drawn from it."""

import numpy as np


def expected_auroc(risk_N):
    """P(r_i > r_j | i has the event, j has not), outcomes drawn from the risks."""
    weight = risk_N[:, None] * (1 - risk_N)
    np.fill_diagonal(weight, 0)
    return (weight * (risk_N[:, None] > risk_N)).sum() / weight.sum()
