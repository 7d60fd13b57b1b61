"""`guda sign` and `guda verify`: who made a report."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from guda_core.cli.terminal import say
from guda_core.errors import OptionError
from guda_core.paths import is_there

ReportArgument = Annotated[Path, typer.Argument(help="The zip of a report.")]
ALONE = "Only the record was {}, not the report's pictures and values. For these, give the report's zip."
SIGNER = "The public key of the one who signed, as OpenSSH writes it (a .pub file)."


def sign(
    report: ReportArgument,
    key: Annotated[Path, typer.Option("--key", help="Your private Ed25519 key, as ssh-keygen writes it.")],
) -> None:
    """Sign a report with your key, into REPORT.sig beside it. No report needs a signature.

    A key's passphrase is asked for, or taken from GUDA_KEY_PASSPHRASE.
    """
    from guda_core.reports import bundle, locked_key, signature
    from guda_core.reports.read import read_report

    data, secret = small(report, None), small(key, signature.MAX_FILE)
    if b"PRIVATE KEY" in secret:
        locked_key.refuse_open(key)
    found = read_report(report)  # only a whole report is signed
    place = signature_of(report)
    made = locked_key.sign(data, key, _passphrase()) if locked_key.is_locked(secret) else signature.sign(data, secret)
    bundle.write(place, made)
    say(f"Written: {place}")
    if found.is_bare:
        say(ALONE.format("signed"))


def _passphrase() -> str:
    """From the variable, else from the one at the terminal. Raises OptionError: there is neither."""
    from guda_core.reports.locked_key import NO_PASSPHRASE, VARIABLE

    if VARIABLE in os.environ:
        return os.environ[VARIABLE]
    if not sys.stdin.isatty():
        raise OptionError(NO_PASSPHRASE)
    return typer.prompt("Passphrase of the key", hide_input=True, err=True)


def verify(
    report: ReportArgument,
    signer: Annotated[Path, typer.Option("--signer", help=SIGNER)],
    signature: Annotated[
        Path | None, typer.Option("--signature", help="The signature. Default: REPORT.sig beside the report.")
    ] = None,
) -> None:
    """Check that a report is whole and was signed by the holder of a key.

    Nothing is computed: `guda replay` does that.
    """
    from guda_core.reports.read import read_report

    who = checked(report, signature or signature_of(report), signer)
    whole = ALONE.format("checked") if read_report(report).is_bare else "The report is whole."
    say(f"Signed by the holder of the key {who}. {whole}")


def checked(report: Path, signature: Path, signer: Path) -> str:
    """The fingerprint of the key that signed a report. Raises GudaError when it was not that signer's."""
    from guda_core.reports import signature as signatures

    most = signatures.MAX_FILE
    return signatures.check(small(report, None), small(signature, most), small(signer, most))


def signature_of(report: Path) -> Path:
    return report.with_name(f"{report.name}.sig")


def small(path: Path, most: int | None) -> bytes:
    """The bytes of a file, at most so many, or as many as a report has."""
    from guda_core.reports.unzip import MAX_ZIP

    if not is_there(path):
        raise OptionError(f"There is no file '{path}'.")
    most = most or MAX_ZIP
    try:
        with path.open("rb") as f:
            data = f.read(most + 1)
    except OSError as e:
        raise OptionError(f"'{path}' cannot be read ({e.strerror}).") from e
    if len(data) > most:
        raise OptionError(f"'{path}' is too large.")
    return data
