"""Signing with a key that has a passphrase: `ssh-keygen -Y sign` unlocks it and signs, so that the key's bytes are only
ever unlocked within OpenSSH.

The passphrase reaches it as OpenSSH has it (SSH_ASKPASS): by a program that prints a variable, and not on a command
line, which others on the machine could read.
"""

from __future__ import annotations

import base64
import binascii
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

from guda_core.errors import ReportError
from guda_core.reports import signature

MAGIC = b"openssh-key-v1\0"
BEGIN, END = b"-----BEGIN OPENSSH PRIVATE KEY-----", b"-----END OPENSSH PRIVATE KEY-----"
VARIABLE = "GUDA_KEY_PASSPHRASE"
ASK = f'#!/bin/sh\nprintf "%s\\n" "${VARIABLE}"\n'
SECONDS = 60.0
NO_PROGRAM = "A key with a passphrase needs the program ssh-keygen. Install OpenSSH, or sign with a key that has none."
ON_WINDOWS = (
    "On Windows, guda cannot sign with a key that has a passphrase. Sign with a key that has none: "
    f"{signature.MAKE_ONE}."
)
WRONG = "The passphrase does not open this key. Try again."
NO_PASSPHRASE = (
    f"This key has a passphrase. Set {VARIABLE} to it, run guda sign in a terminal, or sign with a key that has none."
)


def refuse_open(key: Path) -> None:
    """Raises ReportError where others may read a private key that is one's own, as OpenSSH does."""
    if sys.platform == "win32":
        return
    told = key.stat()
    if told.st_uid == os.getuid() and told.st_mode & 0o077:
        raise ReportError(f"Others on this machine may read this key. First run: chmod 600 {key}")


def is_locked(key: bytes) -> bool:
    """Whether a private key file of OpenSSH's has a passphrase.

    Raises:
        ReportError: it has one, and is no Ed25519 key, or this is Windows: its OpenSSH asks no script for a passphrase.
    """
    text = key.strip()
    if not (text.startswith(BEGIN) and text.endswith(END)):
        return False
    try:
        data = base64.b64decode(b"".join(text[len(BEGIN) : -len(END)].split()), validate=True)
        parts, rest = [], data.removeprefix(MAGIC)
        for _ in range(3):  # cipher, key derivation and its options
            (length,) = struct.unpack(">I", rest[:4])
            parts.append(rest[4 : 4 + length])
            rest = rest[4 + length :]
    except (binascii.Error, struct.error):
        return False
    if not data.startswith(MAGIC) or parts[0] == b"none":
        return False
    kind = struct.pack(">I", len(signature.KIND)) + signature.KIND
    if rest[8 : 8 + len(kind)] != kind:  # behind the number of keys and the length of the public one
        raise ReportError(signature.NOT_A_KEY)
    if os.name == "nt":
        raise ReportError(ON_WINDOWS)
    return True


def sign(data: bytes, key: Path, passphrase: str) -> bytes:
    """The signature file of a report's bytes by a key that has a passphrase, as of `signature.sign`.

    Raises:
        ReportError: ssh-keygen is missing, the passphrase is wrong, or ssh-keygen refuses for another reason.
    """
    program = shutil.which("ssh-keygen")
    if program is None:
        raise ReportError(NO_PROGRAM)
    command = [program, "-Y", "sign", "-q", "-n", signature.NAMESPACE.decode(), "-f", str(key)]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        ask = Path(folder) / "ask"
        ask.write_text(ASK, encoding="ascii")
        ask.chmod(0o700)
        asked = {"SSH_ASKPASS": str(ask), "SSH_ASKPASS_REQUIRE": "force", "DISPLAY": ":0", VARIABLE: passphrase}
        env = {**{k: v for k, v in os.environ.items() if k != "SSH_AUTH_SOCK"}, **asked}
        try:
            done = subprocess.run(
                command, input=data, capture_output=True, timeout=SECONDS, check=False, start_new_session=True, env=env
            )
        except (OSError, ValueError, subprocess.TimeoutExpired) as e:
            raise ReportError(f"ssh-keygen could not sign ({type(e).__name__}). See that it runs by itself.") from e
    if done.returncode or not done.stdout.startswith(signature.BEGIN.encode()):
        lines = done.stderr.decode("utf-8", "replace").split("\n")
        # a passphrase that could not be asked for is "incorrect", too
        why = next((x for x in lines if "askpass" in x), [f"status {done.returncode}", *filter(str.strip, lines)][-1])
        if "incorrect passphrase" in why:
            raise ReportError(WRONG)
        raise ReportError(f"ssh-keygen could not sign with this key. It says: {why.strip()}")
    return done.stdout
