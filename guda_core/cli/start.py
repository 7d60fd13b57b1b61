"""`guda app`: the page, on this machine or as a Space. `app.py` at the top of the repository does the same.
It starts on any machine, or says in one sentence why not.

Tried before the model is loaded: the address (GUDA_HOST, GUDA_PORT, or what a Space sets), and an upload folder of this
process alone (in GRADIO_TEMP_DIR), which is gone when the app ends.
"""

from __future__ import annotations

import atexit
import errno
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from guda_core import paths
from guda_core.clean_log import log_cleaned, server_log_cleaned
from guda_core.cli.loading import uncollected
from guda_core.cli.terminal import DtypeOption, HomeOption, LoraOption, ModelOption, SetOption
from guda_core.errors import OptionError
from guda_core.held_files import check_writable
from guda_core.libraries import set_up_libraries
from guda_core.proxies import without_proxies

if TYPE_CHECKING:
    from guda_core.service import Service

log = logging.getLogger(__name__)
HOST, PORT = "127.0.0.1", 7860
# What ends the app from outside. SIGHUP: the terminal was closed; SIGBREAK: Ctrl+Break. When its window is
# closed, Windows ends it at once, and the uploads are left to the next app's sweeper (`ui.sweep`).
ENDS = ("SIGTERM", "SIGHUP", "SIGBREAK")
LEAVE_S = 5.0  # that the libraries may take to tidy up
UPLOADS = "GRADIO_TEMP_DIR"  # the folder whose files gradio serves; it reads this when it is imported


def read_address(environ: MutableMapping[str, str] | None = None) -> tuple[str, int]:
    """Host and port: GUDA_HOST and GUDA_PORT, else what a Space sets, else this machine alone on 7860.

    Raises:
        OptionError: the port is no whole number from 1 to 65535.
    """
    given = os.environ if environ is None else environ
    host = (given.get("GUDA_HOST") or given.get("GRADIO_SERVER_NAME") or HOST).strip()
    name = "GUDA_PORT" if given.get("GUDA_PORT") else "GRADIO_SERVER_PORT"
    text = (given.get(name) or str(PORT)).strip()
    if not (text.isascii() and text.isdigit() and len(text) < 6 and 0 < int(text) < 65536):
        said = "The port (--port, or GUDA_PORT)" if name == "GUDA_PORT" else name
        raise OptionError(f"{said} must be a whole number from 1 to 65535; got '{text[:40]}'.")
    return host.removeprefix("[").removesuffix("]"), int(text)


def check_address(host: str, port: int) -> None:
    """Can this process listen there?

    Raises:
        OptionError: the port is taken or needs more rights, or the host is no address of this machine.
    """
    try:
        family, *_, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with closing(socket.socket(family, socket.SOCK_STREAM)) as tried:
            if os.name == "posix":
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # not one that a server has just left
            tried.bind(where)
    except (OSError, UnicodeError) as e:
        code = e.errno if isinstance(e, OSError) else None
        if code == errno.EADDRINUSE:
            other = port + 1 if port < 65535 else PORT
            raise OptionError(
                f"Port {port} is in use by another program. Take another one, for example with --port {other} or "
                f"GUDA_PORT={other}."
            ) from e
        if code in (errno.EACCES, errno.EPERM):
            raise OptionError(
                f"Port {port} may not be used without administrator rights. Take another one, for example with "
                f"GUDA_PORT={PORT}."
            ) from e
        raise OptionError(
            f"'{host[:80]}' is no address of this machine. Set GUDA_HOST to one, for example to {HOST} (this machine "
            "alone) or 0.0.0.0 (everybody who can reach it)."
        ) from e


def check_root_path() -> None:
    """GRADIO_ROOT_PATH, where a proxy shows the app under a path of its own.

    Raises:
        OptionError: it is neither a path nor a web address.
    """
    path = os.environ.get("GRADIO_ROOT_PATH", "")
    if path and not path.startswith(("/", "http://", "https://")):
        raise OptionError(f"GRADIO_ROOT_PATH must begin with '/', 'http://' or 'https://'; got '{path[:80]}'.")


def try_folder(folder: Path) -> str:
    """Make the folder and write a file into it; why that fails, or "" when it does not."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_writable(folder)
    except OSError as e:
        return e.strerror or type(e).__name__
    return ""


@contextmanager
def upload_folder() -> Iterator[Path]:
    """A new folder for uploads that only this user can read, which is removed at the end: in GRADIO_TEMP_DIR where that
    is given. Whoever knows a file's name may ask the app for it, so nothing else lies there.

    gradio's own choice, one folder for all users of the machine, fails for the second user.

    Raises:
        OptionError: no place can be written to.
    """
    given, tried = os.environ.get(UPLOADS), []
    if given and (why := try_folder(Path(given))):
        raise OptionError(f"Uploads cannot be kept in '{given}' ({why}). Set {UPLOADS} to another folder.")
    for place in (lambda: str(given),) if given else (tempfile.gettempdir, paths.cache_dir):
        try:
            parent = Path(place()).absolute()  # gettempdir raises where it finds none
        except (OSError, RuntimeError):
            continue
        if why := try_folder(parent):
            tried.append(f"{parent}: {why}")
            continue
        with tempfile.TemporaryDirectory(prefix=paths.UPLOADS, dir=parent, ignore_cleanup_errors=True) as name:
            os.environ[UPLOADS] = name
            try:
                yield Path(name)
            finally:
                os.environ.pop(UPLOADS)
                os.environ.update({UPLOADS: given} if given else {})
        return
    raise OptionError(
        f"No folder for uploads can be written to ({'; '.join(tried) or 'there is none'}). Set {UPLOADS} to a folder "
        "that can."
    )


def _settle(host: str, port: int) -> None:
    """What gradio reads of the environment when it is imported, so that it never meets a value that it cannot read."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = os.environ.get("GRADIO_ANALYTICS_ENABLED") or "False"
    os.environ["GRADIO_SERVER_PORT"] = str(port)
    os.environ["GRADIO_SERVER_NAME"] = HOST if ":" in host else host  # where it looks whether the port is free
    os.environ.pop("GRADIO_NUM_PORTS", None)  # one port is asked for, and that one or none


def _interrupt(*_: object) -> None:
    """While the app starts, a signal ends it as Python ends."""
    raise SystemExit(0)


def _end(*_: object) -> None:
    """While the app serves, the first signal ends it; those that follow change nothing."""
    for name in (*ENDS, "SIGINT"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    raise SystemExit(0)


def _ends_by(names: Sequence[str], end: Callable[..., None]) -> None:
    """Let these signals end the app in order, so that the folder of the uploads is removed; not those that whoever
    started it has turned off."""
    for name in names:
        if hasattr(signal, name) and signal.getsignal(number := getattr(signal, name)) != signal.SIG_IGN:
            signal.signal(number, end)


def run(make_service: Callable[[], Service]) -> None:
    """Serve the service that `make_service` makes, until interrupted; then end the process.

    Raises:
        GudaError: the address, the upload folder or the model cannot be used.
    """
    host, port = read_address()
    check_address(host, port)
    check_root_path()
    _settle(host, port)
    _ends_by(ENDS, _interrupt)
    serves = False
    try:
        with upload_folder():
            with uncollected():
                service = make_service()
                with without_proxies():  # gradio makes a client when it is imported, which some proxies' names stop
                    from guda_core.ui import build_ui, launch_options
                    from guda_core.ui.serve import launch
            page = build_ui(service)
            serves = True
            _ends_by((*ENDS, "SIGINT"), _end)  # as is, gradio waits five seconds for threads that compute
            demo, url = launch(page, host, port, **launch_options())
            server_log_cleaned()
            log.info("The app answers at %s (stop it with Ctrl+C).", url)
            demo.block_thread()
    except SystemExit as e:
        if not serves or e.code:  # of a library that gives up, say
            raise
        log.info("Stopped.")
    _leave()


def _leave() -> NoReturn:
    """End this process, now that the uploads are gone. Threads that compute for a visitor are not waited for: they
    would come back from torch while Python goes down, and C++ would end the process with an abort."""
    at_most = threading.Timer(LEAVE_S, os._exit, (0,))
    at_most.daemon = True
    at_most.start()
    with suppress(Exception):
        atexit._run_exitfuncs()  # libraries remove their own temporary folders
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(0)


def _service(model: str | None, group_set: str | None) -> Service:
    if os.environ.get("SPACES_ZERO_GPU"):
        with without_proxies():  # it imports gradio
            import spaces  # noqa: F401  # pyright: ignore[reportMissingImports]  (before torch, as ZeroGPU asks)
    set_up_libraries()

    from guda_core.local import load_service
    from guda_core.zero_gpu import on_zero_gpu

    return on_zero_gpu(load_service(model, group_set=group_set))


def start(
    model: ModelOption = None,
    lora: LoraOption = None,
    dtype: DtypeOption = None,
    group_set: SetOption = None,
    results: Annotated[
        str | None,
        typer.Option(help="Also show this table of scores (`guda attribute --table`). Default: GUDA_RESULTS."),
    ] = None,
    host: Annotated[
        str | None, typer.Option(help=f"Where to listen. Default: GUDA_HOST, else GRADIO_SERVER_NAME, else {HOST}.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help=f"The port. Default: GUDA_PORT, else GRADIO_SERVER_PORT, else {PORT}.")
    ] = None,
    home: HomeOption = None,
) -> None:
    """Start the page: load the model, build the page and serve it until interrupted."""
    if results is not None:
        from guda_core.scoring.asking import Results

        Results(results).close()  # what is wrong with it is said before a model is loaded
        os.environ["GUDA_RESULTS"] = results
    for name, given in (("GUDA_HOST", host), ("GUDA_PORT", port)):
        if given is not None:
            os.environ[name] = str(given)
    log_cleaned("%(levelname)s %(name)s: %(message)s")
    logging.getLogger("guda_core").setLevel(logging.INFO)
    run(lambda: _service(model, group_set))
