"""The adapter on the published data: counts and concordance as published; skips where the data are not there."""

import numpy as np
import polars as pl
import pytest

from ehrwear_jax.data.formats import meds, wearable
from ehrwear_jax.data.formats.stretches import Stretch
from ehrwear_jax.data.formats.times import DAY_US, HOUR_US
from ehrwear_jax.data.signals import non_wear
from ehrwear_jax.data.sources import nhanes, nhanes_files

AGE_SEX = ("age_years", "male")
CLINICAL = (
    *AGE_SEX,
    "bmi", "systolic_bp", "total_cholesterol", "hdl_cholesterol",
    "diabetes", "chf", "chd", "cancer", "stroke", "mobility_difficulty",
    "smoking_former", "smoking_current",
    "education_below_high_school", "education_above_high_school",
)  # fmt: skip
WEAR = ("total_activity", "total_log_activity", "wear_time", "sedentary_time", "mvpa_time")


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


def covariate_table(source):
    """CLINICAL and WEAR of everyone; yes/no is 1 and 0, and 0 also where the answer is unknown."""

    def is_any(column, *answers):
        return pl.col(column).is_in(answers).fill_null(False).cast(pl.Float64)

    columns = {
        "age_years": pl.col("age"),
        "male": is_any("Gender", "Male"),
        "bmi": pl.col("BMI"),
        "systolic_bp": pl.col("sys"),
        "total_cholesterol": pl.col("lbxtc"),
        "hdl_cholesterol": pl.col("lbdhdd"),
        **{name.lower(): is_any(name, "Yes") for name in ("Diabetes", "CHF", "CHD", "Cancer", "Stroke")},
        "mobility_difficulty": is_any("MobilityProblem", "Any Difficulty"),
        "smoking_former": is_any("SmokeCigs", "Former"),
        "smoking_current": is_any("SmokeCigs", "Current"),
        "education_below_high_school": is_any("EducationAdult", "Less than 9th grade", "9-11th grade"),
        "education_above_high_school": is_any(
            "EducationAdult", "Some College or AA degree", "College graduate or above"
        ),
        **{channel: pl.col(column) for column, (channel, *_) in nhanes.DAILY_CHANNELS.items()},
    }
    return nhanes_files.read_people(source).select(pl.col("SEQN").alias("subject_id"), **columns)


@pytest.mark.parametrize(
    ("covariates", "published"),
    [
        (AGE_SEX, 0.791),
        (CLINICAL, 0.822),
        (WEAR, 0.749),
        (CLINICAL + WEAR, 0.827),
    ],
    ids=["age_sex", "clinical", "wear", "clinical_wear"],
)
def test_five_fold_cox_is_near_the_published_concordance(real, covariates, published):
    lifelines = pytest.importorskip("lifelines")
    source, root, _ = real
    labels = meds.read_labels(root / "labels" / f"{nhanes.TASK}.parquet")
    table = covariate_table(source).join(labels, on="subject_id").join(
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


def test_time_not_worn_is_found_in_the_counts_as_the_published_flags_have_it(shared_data):
    """Weeks of minute counts as recorded: found at each window's end, against the flags, which know the whole week."""
    source = shared_data("nhanes_linked")
    flags, packed = nhanes_files.Flags(source), np.load(source / "counts_268.npz")
    of_day: dict[int, dict[int, np.ndarray]] = {}
    for seqn, day, by_day, counts in zip(*(packed[k] for k in ("SEQN", "day", "src", "counts")), strict=True):
        position = flags.position.get(int(seqn))
        if position is not None and flags.usable_P[position]:
            offset = int(day) - 1 if by_day else int(day - flags.weekday_Px7[position, 0]) % 7
            of_day.setdefault(int(seqn), {})[offset] = counts
    rules = non_wear.parse(("auto",), {"activity_count": "count/min"})
    off, worn = [], []
    for seqn, days in sorted(of_day.items()):
        if len(days) == 7:
            counts = np.concatenate([days[k] for k in range(7)]).astype(np.float32)
            row = Stretch(17_000 * DAY_US, 1 / 60, "activity_count", counts)
            off.append(np.isnan(non_wear.remove([row], rules, 6 * HOUR_US, {})[0].values_N))
            worn.append(flags.of(seqn).reshape(-1) == 1)
    off, worn = np.stack(off), np.stack(worn)
    assert len(off) == 230 and np.mean(off == ~worn) > 0.975
    assert worn[off].mean() < 0.015 and off[~worn].mean() > 0.965, "precise; some runs are known only later"
    days = [(x.reshape(len(x), 7, 1440).sum(axis=2) >= 720).sum() for x in (~off, worn)]
    assert abs(days[0] - days[1]) < 20 and days[1] < 0.65 * 7 * len(off), "zeros as wear would make all days"
