"""One app for all tests of a file: starting one and drawing its page anew costs more than most of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fakes import WAIT, FakeService, serving


class Stage:
    """A served app, and its service, which is as new at the beginning of each test.

    make: gives the service. What the page is built from (groups, methods, texts) stays as the first one has it.
    """

    def __init__(self, make: Callable[[], FakeService], url: str, service: FakeService, uploads: Path) -> None:
        self.make, self.url, self.service, self.uploads = make, url, service, uploads

    def renewed(self) -> Stage:
        """Wait until the work of the test before has ended, then forget it."""
        end = time.monotonic() + WAIT
        while self.service.at_work:
            assert time.monotonic() < end, "the test before left work that does not end"
            time.sleep(0.02)
        vars(self.service).clear()
        vars(self.service).update(vars(self.make()))
        return self


def staged(make: Callable[[], FakeService], folder: Path) -> Iterator[Stage]:
    """The app, with the uploads in `folder`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        service = make()
        with serving(service) as url:
            yield Stage(make, url, service, folder)
