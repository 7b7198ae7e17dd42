"""The adapter on the published data: counts and concordance as published; skips where the data are not there."""

import numpy as np
import polars as pl
import pytest

from ehrwear_jax.data.formats import meds, wearable
from ehrwear_jax.data.sources import nhanes


@pytest.fixture(scope="module")
def real(shared_data, tmp_path_factory):
    root = tmp_path_factory.mktemp("nhanes_real") / "root"
    source = shared_data("nhanes_linked")
    records = nhanes.build(source, root, progress=False)
    return source, root, {record["step"]: record for record in records}


def test_published_counts(real):
    _, root, records = real
    for step, n in nhanes.PUBLISHED.items():
        assert records[step]["n"] == n
    labels = meds.read_labels(root / "labels" / f"{nhanes.TASK}.parquet")
    assert (len(labels), int(labels["event_observed"].sum())) == (5_964, 1_068)
    folds = meds.read_folds(root / "meds").filter(pl.col("fold") >= 0)
    assert set(folds["subject_id"]) == set(labels["subject_id"])
    assert folds.group_by("fold").len()["len"].min() > 1_100
    recordings = pl.concat(
        [pl.read_parquet(p, columns=["subject_id", "channel"]) for p in wearable.list_shards(root / "wearable")]
    )
    people = dict(recordings.group_by("channel").agg(pl.col("subject_id").n_unique()).iter_rows())
    assert people[nhanes.WEAR_FLAG] == 14_631 - records["people with usable wear flags"]["dropped"]
    assert people[nhanes.ACTIVITY_COUNT] == 316 - records["people with usable minute counts"]["dropped"]
    assert people[nhanes.ACTIVITY_PROFILE] == 5_972


@pytest.mark.parametrize(
    ("covariates", "published"),
    [
        (nhanes.AGE_SEX, 0.791),
        (nhanes.CLINICAL_CORE, 0.822),
        (nhanes.WEAR_CORE, 0.749),
        (nhanes.CLINICAL_CORE + nhanes.WEAR_CORE, 0.827),
    ],
    ids=["age_sex", "clinical", "wear", "clinical_wear"],
)
def test_five_fold_cox_is_near_the_published_concordance(real, covariates, published):
    lifelines = pytest.importorskip("lifelines")
    source, root, _ = real
    labels = meds.read_labels(root / "labels" / f"{nhanes.TASK}.parquet")
    table = nhanes.table_covariates(source).join(labels, on="subject_id").join(
        meds.read_folds(root / "meds"), on="subject_id"
    )  # fmt: skip
    frame = table.to_pandas()
    risk = np.zeros(len(frame))
    for fold in range(5):
        held = (frame["fold"] == fold).to_numpy()
        x = frame[list(covariates)]
        x = x.fillna(x[~held].median())
        x = (x - x[~held].mean()) / x[~held].std()
        fit = x[~held].assign(T=frame["time_to_event_days"], E=frame["event_observed"])
        model = lifelines.CoxPHFitter(penalizer=1e-4).fit(fit, "T", "E")
        risk[held] = model.predict_log_partial_hazard(x[held])
    c_index = lifelines.utils.concordance_index(frame["time_to_event_days"], -risk, frame["event_observed"])
    assert c_index == pytest.approx(published, abs=0.003)
