"""How many pictures one pass of the network takes: all of a step, and half as many each time memory runs out.

The loss of a step is a sum over its pictures, so its gradient is the sum of its pieces' gradients.
"""

from __future__ import annotations

import logging
from typing import Any

log = logging.getLogger(__name__)


class Pieces:
    """size: pictures of a pass; None = all."""

    def __init__(self, size: int | None) -> None:
        self.size = size
        self._most = 0  # that were asked for at once

    def of(self, count: int) -> list[slice]:
        """So many pictures cut into passes, in order."""
        self._most = max(self._most, count)
        size = min(self.size or count, count)
        return [slice(i, min(i + size, count)) for i in range(0, count, max(1, size))]

    def halve(self) -> bool:
        """Half as many from now on; whether that is possible."""
        size = min(self.size or self._most, self._most)
        if size <= 1:
            return False
        self.size = size // 2
        log.warning("Memory ran out at %d pictures a pass; going on with %d.", size, self.size)
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"size": self.size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Never more than is allowed here: another machine may have more memory."""
        sizes = [s for s in (self.size, state["size"]) if s is not None]
        self.size = min(sizes, default=None)
