"""Tiny pipelines as folders, one for each family."""

import pytest

from personalize.pipeline.random_pipeline import tiny


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Tiny pipelines by family; copied by nobody, changed by nobody."""
    made = {}

    def folder(family):
        if family not in made:
            made[family] = tmp_path_factory.mktemp("families") / family
            tiny(family, folder=made[family])
        return made[family]

    return folder
