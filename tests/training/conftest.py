"""A prepared cohort that several files of this folder read; nobody changes it."""

import cohort
import pytest


@pytest.fixture(scope="session")
def people(tmp_path_factory):
    """Folder of twenty-five people with two days of wear, for small_run.store."""
    root = cohort.write_cohort(tmp_path_factory.mktemp("people"), n_subjects=25, wear_days=2)
    return cohort.prepare_cohort(root, subjects_per_shard=8)
