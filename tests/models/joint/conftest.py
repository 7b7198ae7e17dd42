"""What several files of this folder read and nobody changes: prepared cohorts, and random cases of terms."""

import cohort
import pytest
import term_cases


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


@pytest.fixture(scope="module")
def losses(request):
    """Losses of the terms that the file names in TERMS."""
    return term_cases.Losses(request.module.TERMS)


@pytest.fixture(scope="module")
def case(request, losses):
    """(outputs, batch, loss, metrics, gradients) of a random case of these terms."""
    out, batch = term_cases.random_outputs(1, request.module.TERMS), term_cases.random_batch(10)
    return out, batch, *losses(out, batch)
