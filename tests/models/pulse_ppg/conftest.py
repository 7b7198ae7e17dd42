"""What several files of this folder read and nobody changes: a prepared cohort with waves."""

import pytest
import segment_cases


@pytest.fixture(scope="session")
def people(tmp_path_factory):
    """Folder of thirty people, for small_run.store."""
    return segment_cases.make_people(tmp_path_factory.mktemp("pulse"))
