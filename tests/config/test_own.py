"""configs/own.py looks at a folder of data and makes a config that can run on it, or says why it cannot."""

import runpy
import shutil

import polars as pl
import pytest
import small_run
from repo import REPO

from ehrwear_jax import config as config_lib
from ehrwear_jax.config import reference
from ehrwear_jax.stages import runner


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("own")
    small_run.write_inputs(root)
    shutil.move(root / "labels", root / "raw" / "labels")
    return root / "raw"


def own(variant):
    values = runpy.run_path(str(REPO / "configs" / "own.py"))["get_config"](variant)
    config = config_lib.parse(values)
    config_lib.check(config)
    return values, config


def test_what_lies_beside_the_data_is_taken_and_its_channels_are_read(data):
    _, config = own(str(data / "meds"))
    declared = pl.read_parquet(data / "wearable" / "metadata" / "channels.parquet")
    assert config.prepare.channels == tuple(declared["channel"]) and config.data.wearable_dir == str(data / "wearable")
    assert {"joint", "ehr_only", "wear_only", "late_fusion"} <= set(config.models)
    tables = {p.stem for p in (data / "labels").glob("*.parquet")}
    assert set(config.evaluate.tasks) == tables and config.evaluate.reference_model == "joint"
    people = pl.scan_parquet(data / "meds" / "data" / "**" / "*.parquet").select("subject_id").unique().collect().height
    assert people < 500 and config.prepare.min_subjects == 5, "the least"
    assert f"{people} people" in config.report.title


def test_without_wearables_there_is_one_network(data, tmp_path):
    shutil.copytree(data / "meds", tmp_path / "clinic")
    _, config = own(f"{tmp_path}/clinic,labels={data}/labels,paper")
    assert config.networks == ["ehr_only"] and config.prepare.channels == () and not config.data.wearable_dir
    assert config.name == "own-tiny-paper" and config.report.title.startswith("clinic: ")
    assert config.evaluate.reference_model == "ehr_only" and not config.model_config("ehr_only").network.value_inputs


@pytest.mark.parametrize(
    "variant, message",
    [
        ("", "takes the folder of a MEDS dataset"),
        ("{root}", "there is no MEDS dataset in"),
        ("{root}/meds,wearable={root}/none", "there is no such folder"),
        ("{root}/meds,weareable={root}", "has no weareable="),
        ("{root}/meds,labels={root}/meds/metadata/none", "there is no such folder"),
        ("{root}/meds,nothing", "no variant 'nothing'"),
    ],
)
def test_what_cannot_be_is_said(data, variant, message):
    with pytest.raises(ValueError, match=message):
        own(variant.format(root=data))


def test_labels_are_made_of_what_the_codes_allow(tmp_path):
    def write(*codes):
        folder = tmp_path / "-".join(c.replace("/", "") for c in codes) / "data"
        folder.mkdir(parents=True)
        pl.DataFrame({"subject_id": [1] * len(codes), "code": codes}).write_parquet(folder / "0.parquet")
        return str(folder.parent)

    _, config = own(write("HOSPITAL_ADMISSION//EW", "LAB//1"))
    assert config.labels.admission_codes == ("HOSPITAL_ADMISSION",) and config.labels.discharge_codes == ()
    assert config.evaluate.tasks == ("hospitalization_90d", "hospitalization_365d") and not config.labels.death
    _, config = own(write("MEDS_DEATH", "LAB//1"))
    assert config.evaluate.tasks == ("death_365d", "time_to_death") and config.labels.death
    with pytest.raises(ValueError, match="no code of an admission or a death"):
        own(write("LAB//1"))


def test_prepare_fails_where_no_code_is_frequent(data, tmp_path):
    values, _ = own(str(data / "meds"))
    values.prepare.min_subjects = 10_000
    for _ in range(2):  # it is not done, however often it is tried
        with pytest.raises(ValueError, match="no code is frequent, so that no event is left: lower config.prepare"):
            runner.run(config_lib.parse(values), tmp_path, ("prepare",))
    values.only, values.evaluate.reference_model = ("wear_only",), "wear_only"
    runner.run(config_lib.parse(values), tmp_path, ("prepare",))  # which reads no event


def test_data_of_ones_own_beside_another_source_are_refused(data):
    values, _ = own(str(data / "meds"))
    values.data.source = "synthetic"
    with pytest.raises(ValueError, match="set --config.data.source=meds"):
        config_lib.check(config_lib.parse(values))


def test_every_option_of_a_run_is_printed_with_its_meaning(data, capsys):
    _, config = own(str(data / "meds"))
    runner.run(config, data / "nowhere", ("print_config",))
    printed = capsys.readouterr().out
    assert not (data / "nowhere").exists()
    assert "  config.prepare.min_subjects = 5  (default " in printed
    assert f"  config.data.meds_dir = '{data}/meds'  (default '')" in printed
    for option in reference.entries():
        assert option.name in printed and " ".join(option.text.split()) in printed
    assert "  late_fusion: {'family': 'late_fusion'" in printed
