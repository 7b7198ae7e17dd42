"""The launch scripts with stand-ins for srun, scontrol and gcloud: what is called, and what is started again."""

import hashlib
import os
import subprocess
import zipfile

import pytest
from repo import REPO

from ehrwear_jax.data.sources import nhanes_cdc_events, nhanes_cdc_files
from ehrwear_jax.runtime import exit_codes as exits

yaml = pytest.importorskip("yaml")


def put(folder, name, script):
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{script}\n")
    path.chmod(0o755)


def run(tmp_path, *command, **variables):
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "EHRWEAR_RESTART_PAUSE": "0"} | variables
    return subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True, timeout=60)


def codes(tmp_path, name, wanted):
    """A command that ends with these codes in turn, and notes its arguments."""
    (tmp_path / "codes").write_text("\n".join(map(str, wanted)) + "\n")
    put(tmp_path, name, f'echo "$@" >>{tmp_path}/calls; code=$(head -1 {tmp_path}/codes); sed -i 1d {tmp_path}/codes; '
        'exit "$code"')  # fmt: skip
    return lambda: (tmp_path / "calls").read_text().splitlines()


@pytest.mark.parametrize("wanted", [[0], [75, 0], [69, 76, 137, 0], [1], [75, 78], [77], [75, 70], [74]])
def test_a_tpu_job_is_started_again_while_its_code_says_that_this_helps(tmp_path, wanted):
    calls = codes(tmp_path, "gcloud", wanted)
    done = run(tmp_path, "launch/tpu_pod.sh", "pod", "zone-a", "--config=configs/full.py", "--config.name=two words")
    assert done.returncode == wanted[-1], done.stderr
    assert len(calls()) == len(wanted) and calls()[0].startswith(
        "compute tpus tpu-vm ssh pod --zone=zone-a --worker=all"
    )
    assert r"-m ehrwear_jax.main --config=configs/full.py --config.name=two\ words" in calls()[0]


def test_restarts_have_an_end(tmp_path):
    calls = codes(tmp_path, "gcloud", [75] * 9)
    done = run(tmp_path, "launch/tpu_pod.sh", "pod", "zone", "--config=x", EHRWEAR_MAX_RESTARTS="3")
    assert done.returncode == 75 and len(calls()) == 4 and "after 3 restarts, giving up" in done.stderr
    assert run(tmp_path, "launch/tpu_pod.sh", "pod").returncode == 1


@pytest.mark.parametrize("code", [0, 1, 69, 70, 75, 76, 78, 137])
def test_a_slurm_job_goes_back_to_the_queue(tmp_path, code):
    calls = codes(tmp_path, "srun", [code])
    put(tmp_path, "scontrol", f'echo scontrol "$@" >>{tmp_path}/calls')
    variables = {"SLURM_SUBMIT_DIR": str(REPO), "SLURM_JOB_ID": "42", "EHRWEAR_PYTHON": "python"}
    done = run(tmp_path, "bash", "launch/slurm.sh", "--config=configs/full.py", **variables)
    again = code in exits.RESTART or code > 128
    assert calls() == [
        "--kill-on-bad-exit=1 python -m ehrwear_jax.main --config=configs/full.py",
        *(["scontrol requeue 42"] if again else []),
    ]
    assert done.returncode == (0 if again else code)
    if again:
        codes(tmp_path, "srun", [code])
        done = run(tmp_path, "bash", "launch/slurm.sh", **variables, SLURM_RESTART_COUNT="100")
        assert done.returncode == code and "giving up" in done.stderr


def test_the_job_set_starts_all_its_processes_and_knows_the_codes():
    job = yaml.safe_load((REPO / "launch" / "gke_jobset.yaml").read_text())
    workers = job["spec"]["replicatedJobs"][0]
    spec = workers["template"]["spec"]
    container = spec["template"]["spec"]["containers"][0]
    environment = {e["name"]: e.get("value") for e in container["env"]}
    assert spec["parallelism"] == spec["completions"] == int(environment["EHRWEAR_NUM_PROCESSES"])
    first, port = environment["EHRWEAR_COORDINATOR"].split(":")
    assert first == f"{job['metadata']['name']}-{workers['name']}-0-0.{job['metadata']['name']}"
    assert int(port) == container["ports"][0]["containerPort"] and "EHRWEAR_PROCESS_ID" in environment
    final = spec["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"]
    known = {1, *(c.code for c in exits.RunError.__subclasses__()), exits.HUNG}
    assert set(final) == known - set(exits.RESTART)
    assert container["command"] == ["python", "-m", "ehrwear_jax.main"]


def test_the_shell_and_the_package_agree_on_what_is_worth_starting_again(tmp_path):
    check = "source launch/restart.sh; for c in $(seq 0 255); do worth_restarting $c && echo $c; done; true"
    done = run(tmp_path, "bash", "-c", check)
    assert [int(c) for c in done.stdout.split()] == [*exits.RESTART, *range(129, 256)]


def adapter_files(cycle):
    """The files that the adapter reads of a cycle of NHANES, PAXRAW as it is published."""
    tables = [nhanes_cdc_files.stem(name, cycle.letter) for name in (*nhanes_cdc_events.TABLES, "RXQ_RX")]
    minutes = (
        [f"PAXRAW_{cycle.letter}.zip"] if cycle.counts else [f"{n}_{cycle.letter}.xpt" for n in ("PAXHD", "PAXMIN")]
    )
    return {*(f"{t}.xpt" for t in tables if t), *minutes, nhanes_cdc_files.mortality_name(cycle)}


def test_the_download_of_nhanes_is_of_what_the_adapter_reads(tmp_path):
    for cycle in nhanes_cdc_files.CYCLES:
        listed = run(tmp_path, "launch/nhanes_download.sh", "--list", cycle.letter).stdout.split()
        assert len(listed) == len(set(listed)) and all(url.startswith("https://") for url in listed)
        assert {url.rpartition("/")[2] for url in listed} == adapter_files(cycle)
        year = cycle.years[:4]
        assert f"https://wwwn.cdc.gov/Nchs/Data/Nhanes/Public/{year}/DataFiles/DEMO_{cycle.letter}.xpt" in listed
    everything = run(tmp_path, "launch/nhanes_download.sh", "--list").stdout.split()
    assert len(everything) == sum(len(adapter_files(cycle)) for cycle in nhanes_cdc_files.CYCLES)
    done = run(tmp_path, "launch/nhanes_download.sh", str(tmp_path / "x"), "E")
    assert done.returncode and "none of C, D, G, H" in done.stderr and not (tmp_path / "x").exists()


def test_the_download_of_nhanes_keeps_checksums_and_sees_what_changed(tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    for name in adapter_files(nhanes_cdc_files.CYCLES[0]):
        (site / name).write_text(f"HEADER RECORD {name}" if name.endswith("xpt") else f"62161 {name}")
    with zipfile.ZipFile(site / "PAXRAW_C.zip", "w") as made:
        made.writestr("paxraw_c.xpt", "HEADER RECORD of minutes")
    put(tmp_path, "curl", f'for last; do :; done; echo "$last" >>{tmp_path}/calls; '
        f'while [[ $1 != --output ]]; do shift; done; cp "{site}/${{last##*/}}" "$2"')  # fmt: skip

    def download():
        return run(tmp_path, "launch/nhanes_download.sh", str(tmp_path / "got"), "C")

    first = download()
    assert first.returncode == 0, first.stderr
    got = {path.name: path.read_bytes() for path in (tmp_path / "got").iterdir()}
    assert got.pop("PAXRAW_C.xpt") == b"HEADER RECORD of minutes"
    sums = dict(reversed(line.split()) for line in got.pop("SHA256SUMS").decode().splitlines())
    assert got == {path.name: path.read_bytes() for path in site.iterdir()}
    assert sums == {name: hashlib.sha256(content).hexdigest() for name, content in got.items()}
    n_calls = len((tmp_path / "calls").read_text().splitlines())
    assert download().returncode == 0 and len((tmp_path / "calls").read_text().splitlines()) == n_calls == len(sums)
    (site / "BMX_C.xpt").write_text("HEADER RECORD of a new release")
    (tmp_path / "got" / "BMX_C.xpt").unlink()
    changed = download()
    assert changed.returncode and "BMX_C.xpt: differs from its line in SHA256SUMS" in changed.stderr
    (site / "BMX_C.xpt").write_text("<html>Page not found</html>")
    (tmp_path / "got" / "BMX_C.xpt").unlink()
    page = download()
    assert page.returncode and "what came is not such a file" in page.stderr
    assert not (tmp_path / "got" / "BMX_C.xpt").exists()
