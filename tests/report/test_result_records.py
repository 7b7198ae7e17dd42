import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_samples import record, results

from ehrwear_jax.report import result_records as rec


def test_valid_records_keep_their_numbers_and_get_the_fields_order():
    shuffled = [dict(reversed(r.items())) for r in results()]
    checked = rec.check_records(shuffled, "simulated")
    assert checked == results()
    assert all(tuple(r) == rec.FIELDS for r in checked)


def test_nan_becomes_undefined_and_numpy_numbers_become_plain():
    raw = record(value=np.float32("nan"), lo=None, hi=math.nan, n=np.int64(5), n_positive=None)
    (checked,) = rec.check_records([raw], "simulated")
    assert checked["value"] is checked["lo"] is checked["hi"] is None
    assert type(checked["n"]) is int


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"value": "0.8"}, "value must be a number"),
        ({"value": True}, "value must be a number"),
        ({"value": math.inf}, "value is infinite"),
        ({"lo": 0.9, "hi": 0.8}, "lo 0.9 is above hi 0.8"),
        ({"lo": None}, "both"),
        ({"n": None}, "n must be a count"),
        ({"n": 10.5}, "n must be a whole number"),
        ({"n": -1}, "n must be a whole number"),
        ({"n": 100, "n_positive": 101}, "n_positive 101 is above n 100"),
        ({"task": ""}, "task must be a name"),
        ({"model": None}, "model must be a name"),
        ({"dataset": "nafld"}, "dataset is 'nafld', expected 'simulated'"),
        ({"extra": 1}, "unknown fields: extra"),
        ({"seed": "0"}, "seed must be a whole number"),
    ],
)
def test_a_bad_record_is_named(bad, message):
    with pytest.raises(ValueError, match="results record 1.*") as error:
        rec.check_records([record("ehr_only"), record(**bad)], "simulated")
    assert message in str(error.value)


def test_missing_field_and_repeat_are_named():
    lacking = record()
    del lacking["seed"]
    with pytest.raises(ValueError, match="missing fields: seed"):
        rec.check_records([lacking], "simulated")
    with pytest.raises(ValueError, match="same model, task and metric as record 0"):
        rec.check_records([record(), record(value=0.7)], "simulated")
    with pytest.raises(ValueError, match="record 0 is str"):
        rec.check_records(["joint"], "simulated")


def test_models_are_ordered_and_the_oracle_is_last():
    models = ["oracle", "gradient_boosting", "my_model", "joint", "gradient_boosting"]
    assert rec.sorted_models(models) == ["joint", "gradient_boosting", "my_model", "oracle"]
    assert rec.main_model(models) == "joint"
    assert rec.main_model(["oracle"]) is None


def test_best_is_decided_as_printed_and_never_the_oracle():
    values = {"joint": 0.80001, "ehr_only": 0.80049, "wear_only": 0.7, "oracle": 0.9}
    assert rec.best_models(values, True) == {"joint", "ehr_only"}
    assert rec.best_models(values, False) == {"wear_only"}
    assert rec.best_models(values, None) == rec.best_models({"joint": None}, True) == set()


def test_two_seeds_of_one_number_are_refused():
    with pytest.raises(ValueError, match="results record 1 .joint, .*same model, task and metric as record 0"):
        rec.check_records([record(seed=2), record(seed=1)], "simulated")


def test_labels():
    assert rec.model_label("joint - gradient_boosting") == "Joint − Gradient boosting"
    assert rec.model_label("state_space_model") == "State space model"
    assert rec.inline_model_label("ehr_only") == "EHR only"
    assert rec.inline_model_label("late_fusion") == "late fusion"
    assert rec.task_label("new_diagnosis_30d") == "New diagnosis, 30 days"
    assert rec.task_label("mortality") == "Mortality"
    assert rec.metric_of("auroc_difference_p").label == rec.metric_of("auroc").label == "AUROC"
    assert rec.term_label("loss/ehr_masked") == "EHR masked"


def test_numbers():
    assert rec.format_interval(record()) == "0.812 [0.790, 0.833]"
    assert rec.format_interval(record(lo=None, hi=None)) == "0.812"
    assert rec.format_interval(record(value=None, lo=None, hi=None)) == "–"
    difference = record("a - b", metric="auroc_difference", value=0.0123, lo=-0.0009, hi=-0.0001)
    assert rec.format_interval(difference) == "+0.012 [−0.001, 0.000]"
    assert rec.format_p_value(0.0004) == "< 0.001"
    assert rec.format_population(record()) == "n = 1,000, 120 positive (12.0%)"
    assert rec.format_population(record(n=0, n_positive=0)) == "n = 0, 0 positive"


@given(st.floats(-1e6, 1e6), st.booleans())
def test_a_formatted_number_reads_back_to_three_decimals(value, signed):
    text = rec.format_number(value, signed=signed)
    assert float(text.replace(rec.MINUS, "-")) == pytest.approx(value, abs=0.00050001)
    assert "-" not in text and text not in ("−0.000", "+0.000")


def test_horizons_of_whole_years_are_named_by_years():
    days = {30.0: "30 days", 365.0: "365 days", 700.0: "700 days", 730.0: "2 years", 1095.0: "3 years",
            1096.0: "3 years", 1826.25: "5 years", 3650.0: "10 years", 3652.0: "10 years",
            1000.0: "1000 days"}  # fmt: skip
    assert {d: rec.duration(d) for d in days} == days
    assert rec.metric_of("auc_3652").label == "AUC@10 years"
    assert rec.metric_of("brier_90_difference_p").label == "Brier score@90 days"
