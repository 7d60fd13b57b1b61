"""Requests to this machine itself never go through a proxy, whatever proxies the environment names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

NAMES = ("no_proxy", "NO_PROXY")


@contextmanager
def without_proxies() -> Iterator[None]:
    """While it lasts, no HTTP client that is made in this process uses a proxy or even reads what the proxies are."""
    kept = {k: os.environ[k] for k in NAMES if k in os.environ}
    os.environ.update(dict.fromkeys(NAMES, "*"))
    try:
        yield
    finally:
        for k in NAMES:
            os.environ.pop(k, None)
        os.environ.update(kept)
