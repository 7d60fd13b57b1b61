"""Work that several processes share out."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from guda_core.work_queue import claimed, shared_out


def test_what_others_have_in_hand_comes_last_and_is_waited_for(tmp_path):
    path, order = tmp_path / "deep" / "b.npy", []

    def other():
        for work in shared_out("abc", lambda w: tmp_path / "deep" / f"{w}.npy"):
            with claimed(tmp_path / "deep" / f"{work}.npy") as free:
                order.append((work, free, path.exists()))

    with ThreadPoolExecutor(1) as pool:
        with claimed(path) as mine:
            done = pool.submit(other)
            while len(order) < 2:
                time.sleep(0.01)
            path.write_text("made")
        done.result(timeout=240)
    assert mine and order == [("a", False, False), ("c", False, False), ("b", False, True)]
    with claimed(tmp_path / "deep" / "a.npy") as free:
        assert free
