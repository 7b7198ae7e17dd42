"""Death within five years at 50 to 84, beside Smirnova et al. (2019): 2,978 people, 297 deaths, AUC .798 and .838.

On the small joined form of 2003-2006, with inclusion as there: three days with ten hours of wear, complete covariates.
They chose predictors by survey-weighted AUC among more than this form has, and had mortality until 2011.
"""

import numpy as np
import polars as pl
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ehrwear_jax.data.sources import nhanes_files

MEASURED = ("age", "BMI", "sys", "lbxtc", "lbdhdd")
TOLD = ("Gender", "Race", "Diabetes", "CHF", "CHD", "Cancer", "Stroke", "EducationAdult", "MobilityProblem",
        "DrinkStatus", "SmokeCigs")  # fmt: skip
ACTIVITY = ("tac", "tlac", "wt", "st", "mvpa", "satp", "astp", *nhanes_files.PROFILE)


@pytest.fixture(scope="module")
def people(shared_data):
    source = shared_data("nhanes_linked")
    flags, table = nhanes_files.Flags(source), nhanes_files.read_people(source)

    def valid_days(seqn):
        place = flags.position.get(seqn)
        return 0 if place is None or not flags.usable_P[place] else int((flags.of(seqn).sum(axis=1) >= 600).sum())

    table = table.filter(pl.col("age").is_between(50, 85, closed="left") & pl.col("mortstat").is_not_null())
    table = table.drop_nulls([*MEASURED, "EducationAdult", "tac"])
    return table.filter(pl.Series([valid_days(seqn) >= 3 for seqn in table["SEQN"]], dtype=pl.Boolean))


def auc(people, columns, died):
    """Of a logistic regression, out of five folds."""
    told = [c for c in columns if c in TOLD]
    features = people.select(*(pl.col(c) for c in columns if c not in TOLD)).to_numpy()
    if told:
        features = np.concatenate([features, people.select(told).to_dummies().to_numpy()], axis=1)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    risk = cross_val_predict(model, features, died, cv=folds, method="predict_proba")[:, 1]
    return float(roc_auc_score(died, risk))


@pytest.mark.slow
def test_who_is_in_and_what_activity_adds(people):
    died = ((people["mortstat"] == 1) & (people["permth_exm"] <= 60)).to_numpy()
    assert (len(people), int(died.sum())) == (2_991, 300)  # published: 2,978 and 297
    age, without, both = (auc(people, c, died) for c in (("age",), (*MEASURED, *TOLD), (*MEASURED, *TOLD, *ACTIVITY)))
    # seen: .738, .789, .795
    assert 0.70 < age < 0.77 and 0.77 < without < 0.81
    assert both > without
