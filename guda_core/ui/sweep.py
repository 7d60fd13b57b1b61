"""What visitors leave here is deleted: files, within two hours, and visits that nobody comes back to.

gradio's own sweeper knows only the files of whole uploads to this process, and ends for good upon one that it cannot
delete. This one goes by what lies in the folder. It deletes only in the folders that `guda app` makes for itself.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path

import gradio as gr
from gradio.routes import App
from gradio.state_holder import StateHolder

from guda_core.held_files import remove_file
from guda_core.paths import UPLOADS
from guda_core.ui.layout import SESSION

log = logging.getLogger(__name__)
EVERY, OLD = 15 * 60, 90 * 60  # seconds: together less than the two hours that visitors are told
OFTEN = 60  # seconds between two looks at the visits
UNUSED = timedelta(seconds=SESSION)  # after it, nothing of a visit is held: no picture, no answer, no word
IDLE = timedelta(hours=24)  # a page that may be open goes on as a new one until then
SESSIONS = 200  # visits that are remembered at once


def own_files_stay(page: gr.Blocks) -> None:
    """What a page that was just built has copied into the cache is its own, such as icons: no sweeper takes it."""
    for part in page.blocks.values():
        part.keep_in_cache |= part.temp_files


def folders(folder: Path) -> Iterator[Path]:
    """The private folder of an app, and those beside it that this user's apps made: one that was killed left its
    files. Nothing for any other folder."""
    if not folder.name.startswith(UPLOADS):
        return
    owner = folder.stat().st_uid
    for found in folder.parent.glob(f"{UPLOADS}*"):
        with suppress(OSError):
            if found.is_dir() and not found.is_symlink() and found.stat().st_uid == owner:
                yield found


def sweep(folder: Path, kept: Collection[Path] = (), *, old: float = OLD) -> None:
    """Delete files below a folder that were written more than `old` seconds ago, and empty folders. kept: files, with
    links resolved, that stay; they are made young, so that another app's sweeper leaves them too. What cannot be
    deleted is tried again the next time."""
    now = time.time()
    for path, inner, files in os.walk(folder, topdown=False):
        for file in (Path(path, name) for name in files):
            with suppress(OSError):
                if file.resolve() in kept:
                    os.utime(file)
                elif now - file.lstat().st_mtime > old:
                    remove_file(file)
        for empty in (Path(path, name) for name in inner):
            with suppress(OSError):
                if now - empty.lstat().st_mtime > old:  # one that is new is about to get its file
                    empty.rmdir()


def forget(holder: StateHolder) -> None:
    """Drop visits that nobody came back to, and what those hold that may come back: gradio keeps all that a page shows,
    and states for longer once the page is closed. Called in the server's own loop, where visits are looked up too."""
    now = datetime.now()
    with holder.lock:
        for session, used in list(holder.time_last_used.items()):
            state = holder.session_data.get(session)
            if now - used <= UNUSED:
                continue
            if state is None or state.is_closed or now - used > IDLE:
                holder.session_data.pop(session, None)
                holder.time_last_used.pop(session, None)
            else:
                state.config_values.clear()
                state.state_data.clear()


def _sweep_all(app: App) -> None:
    parts = app.get_blocks().blocks.values()
    kept = {Path(path).resolve() for part in parts for path in part.keep_in_cache}
    for folder in folders(Path(app.uploaded_file_dir)):
        sweep(folder, kept)


async def _regularly(app: App) -> None:
    looked = -math.inf
    while True:
        try:
            forget(app.state_holder)
            if time.monotonic() - looked >= EVERY:
                looked = time.monotonic()
                await asyncio.to_thread(_sweep_all, app)
        except Exception:
            log.exception("Old uploads could not be looked for. This is tried again.")
        await asyncio.sleep(min(OFTEN, EVERY))


@asynccontextmanager
async def sweeping(app: App) -> AsyncIterator[None]:
    """For as long as the server runs ("lifespan")."""
    task = asyncio.create_task(_regularly(app))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
