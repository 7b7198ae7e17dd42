"""Prepared cohorts that several files of this folder read; nobody changes them."""

import cohort
import pytest


@pytest.fixture(scope="session")
def many_people(tmp_path_factory):
    """Folder of a hundred people with two days of wear, for small_run.store."""
    root = cohort.write_cohort(tmp_path_factory.mktemp("many"), n_subjects=100, wear_days=2)
    return cohort.prepare_cohort(root)


@pytest.fixture(scope="session")
def few_people(tmp_path_factory):
    """Folder of thirty people with three days of wear, in shards of eight, for small_run.store."""
    root = cohort.write_cohort(tmp_path_factory.mktemp("few"))
    return cohort.prepare_cohort(root, subjects_per_shard=8)


@pytest.fixture(scope="session")
def packed_people(tmp_path_factory):
    """Folder of twenty-five people with two days of wear, whose short records share rows, for small_run.store."""
    root = cohort.write_cohort(tmp_path_factory.mktemp("packed"), n_subjects=25, wear_days=2)
    return cohort.prepare_cohort(root)
