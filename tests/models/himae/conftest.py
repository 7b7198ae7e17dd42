"""What several files of this folder read and nobody changes: a prepared cohort with raw waves."""

import pytest
import segment_cases


@pytest.fixture(scope="session")
def people(tmp_path_factory):
    """Folder for small_run.store."""
    return segment_cases.make_people(tmp_path_factory.mktemp("himae"), n_subjects=20)
