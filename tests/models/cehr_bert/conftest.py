"""What several files of this folder read and nobody changes: a prepared cohort."""

import cohort
import pytest


@pytest.fixture(scope="session")
def people(tmp_path_factory):
    """Folder of forty people with a day of wear, for small_run.store."""
    root = cohort.write_cohort(tmp_path_factory.mktemp("cehr_bert"), n_subjects=40, wear_days=1)
    return cohort.prepare_cohort(root)
