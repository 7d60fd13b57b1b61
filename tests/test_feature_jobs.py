"""Gradient features as jobs: what the command makes, found when it is there, made again when it is not just that."""

from __future__ import annotations

import json

import pytest

from guda_core.attribution.gradient.feature_jobs import AskedFeatures, feature_jobs
from guda_core.attribution.gradient.quantised import META, WEIGHTS
from guda_core.jobs.job import perform
from guda_core.paths import run
from tests.own_pictures import guda
from tests.own_workspace import own_workspace


@pytest.fixture
def there(home):
    """A workspace whose features of D-TRAK the command has made."""
    own_workspace(home)
    guda("assets", "features", "--methods", "dtrak", "--dim", "16", "--set", "artists", "--model", "brush")
    return run("brush", "artists").features / "dtrak"


def test_a_job_makes_what_the_command_makes(there):
    def kinds(**changes):
        asked = AskedFeatures(**{"group_set": "artists", "model": "brush", "dim": 16, **changes})
        return [perform(job, lambda told: None).kind for job in feature_jobs(asked, "brush", ["dtrak"])]

    def meta():
        return {k: v for k, v in json.loads((there / META).read_text()).items() if k != "date"}

    weights, told = (there / WEIGHTS).read_bytes(), meta()
    assert kinds() == ["found"]
    (there / WEIGHTS).write_bytes(weights[:-1])
    assert kinds() == ["done"] and (there / WEIGHTS).read_bytes() == weights
    assert meta() == told
    assert kinds(dim=8) == ["done"] and kinds(dim=8) == ["found"] and kinds() == ["done"]
