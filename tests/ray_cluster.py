"""A Ray cluster on this machine for tests: small, without telemetry, and open to nobody who lacks its token."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
SMALL = {"num_cpus": 1, "object_store_memory": 80 * 2**20}  # of a machine
ALONE = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}  # nobody looks, none is added


def _look_again(loader: Any, config: Any) -> None:
    """Ray keeps what it read of the environment."""
    config.initialize("")
    loader.instance().reset_cache()


@contextmanager
def cluster_of_one() -> Iterator[Any]:
    """The head, where the driver is, a machine with one CPU; `add_node(**SMALL)` adds another."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.delenv("RAY_ADDRESS", raising=False)
        from ray._raylet import AuthenticationTokenLoader, Config
        from ray.cluster_utils import Cluster

        _look_again(AuthenticationTokenLoader, Config)
        made = Cluster(initialize_head=True, head_node_args={**SMALL, **ALONE})
        try:
            yield made
        finally:
            made.shutdown()
            patch.undo()
            _look_again(AuthenticationTokenLoader, Config)
