"""Every event of the page comes late, at random, as far from a busy server: faults in the order of events show.

    GUDA_TEST_LATE_S=1.5 GUDA_TEST_LATE_SEED=1 python -m pytest -p tests.late tests/test_past.py

Steps within a run that is at work are left as they are. What a test then finds depends on seed and machine.
"""

from __future__ import annotations

import asyncio
import os
import random
from typing import Any

import gradio as gr

MOST = float(os.environ.get("GUDA_TEST_LATE_S", "1.0"))  # seconds, before an event and after it
CHANCE = random.Random(int(os.environ.get("GUDA_TEST_LATE_SEED", "0")))
_real = gr.Blocks.process_api


async def _late(page: gr.Blocks, *args: Any, **more: Any) -> dict[str, Any]:
    if more.get("iterator") is not None:
        return await _real(page, *args, **more)
    await asyncio.sleep(CHANCE.random() ** 2 * MOST)
    found = await _real(page, *args, **more)
    await asyncio.sleep(CHANCE.random() ** 2 * MOST)
    return found


gr.Blocks.process_api = _late  # type: ignore[method-assign]
