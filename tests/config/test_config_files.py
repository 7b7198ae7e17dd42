"""Config files are found by path, and by name where they come with the package."""

import pytest
from repo import REPO

from ehrwear_jax.config import config_files


def test_a_name_is_one_of_the_package_and_a_path_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for value in ("tiny", "tiny.py", "configs/tiny.py"):
        assert config_files.find(value + ":paper+r1") == f"{REPO}/configs/tiny.py:paper+r1"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "tiny.py").write_text("")
    assert config_files.find("configs/tiny.py") == "configs/tiny.py" and config_files.find("tiny").startswith(str(REPO))


@pytest.mark.parametrize("value", ["none", "elsewhere/tiny.py", "/configs/tiny.py", "", "../tiny"])
def test_another_is_refused(value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no config file"):
        config_files.find(value)


def test_arguments_are_changed_where_they_name_a_config():
    whole = f"{REPO}/configs/tiny.py"
    found = config_files.in_arguments(["main", "--config=tiny", "--workdir", "tiny", "-config", "tiny", "tiny"])
    assert found == ["main", f"--config={whole}", "--workdir", "tiny", "-config", whole, "tiny"]
