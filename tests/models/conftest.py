"""What tests of several families read and nobody changes."""

import pytest
import segment_cases


@pytest.fixture(scope="session")
def people_with_waves(tmp_path_factory):
    """Folder of a prepared cohort with raw waves, for small_run.store."""
    return segment_cases.make_people(tmp_path_factory.mktemp("waves"), n_subjects=20)
