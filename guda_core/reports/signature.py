"""A detached signature of a report: who holds the key, made this file. Never required.

Ed25519 keys as OpenSSH writes them, signatures in its format (PROTOCOL.sshsig), so that `ssh-keygen -Y verify -n
guda-report` checks them too:

    blob    = "SSHSIG" || 1 || public key || namespace || "" || "sha512" || signature
    signed  = "SSHSIG" || namespace || "" || "sha512" || SHA-512(file)

`cryptography` does the arithmetic and reads the keys. A signature says who made a report. Whether the report is true,
only a replay says.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from typing import TYPE_CHECKING

from guda_core.errors import ReportError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

MAGIC, VERSION, KIND = b"SSHSIG", 1, b"ssh-ed25519"
NAMESPACE, HASH = b"guda-report", b"sha512"
BEGIN, END = "-----BEGIN SSH SIGNATURE-----", "-----END SSH SIGNATURE-----"
LINE = 70  # characters
MAX_FILE = 64_000  # bytes of a key or a signature
NO_LIBRARY = 'Signatures need one more package. Install it: pip install "guda-core[sign]".'
NO_SIGNATURE = "This file is no signature of a report. Take the .sig file that guda sign wrote."
MAKE_ONE = "ssh-keygen -t ed25519 -f KEYFILE (press Enter twice for no passphrase)"
NOT_A_KEY = f"Only Ed25519 keys in OpenSSH's form sign reports. Make a pair: {MAKE_ONE}."


def sign(data: bytes, key: bytes) -> bytes:
    """The signature file of a report's bytes. key: the content of a private key file, without a passphrase.

    Raises:
        ReportError: the package for it is missing, or the key is none, of another kind, or locked.
    """
    serialization, ed25519 = _library()
    try:
        private = serialization.load_ssh_private_key(key, password=None)
    except Exception as e:  # whatever the library says of a file that is no key
        if b"OPENSSH PRIVATE KEY" in key and "password" in str(e).lower():
            raise ReportError(f"This key has a passphrase. Sign with a key that has none: {MAKE_ONE}.") from e
        raise ReportError(NOT_A_KEY) from e
    if not isinstance(private, ed25519.Ed25519PrivateKey):
        raise ReportError(NOT_A_KEY)
    made = private.sign(_signed(data))
    parts = (_key_blob(private.public_key()), NAMESPACE, b"", HASH, _string(KIND) + _string(made))
    blob = MAGIC + struct.pack(">I", VERSION) + b"".join(map(_string, parts))
    text = base64.b64encode(blob).decode()
    lines = [text[i : i + LINE] for i in range(0, len(text), LINE)]
    return "\n".join([BEGIN, *lines, END, ""]).encode()


def check(data: bytes, signature: bytes, signer: bytes) -> str:
    """Check a signature file against a report's bytes and a public key (a line of OpenSSH's); gives the key's
    fingerprint, as `ssh-keygen -l` writes it.

    Raises:
        ReportError: the package is missing, the key or the signature is none, the signature was made with another key,
            or the report is not what was signed.
    """
    serialization, ed25519 = _library()
    try:
        public = serialization.load_ssh_public_key(signer)
    except Exception as e:
        raise ReportError(
            "The signer's file is no public key of OpenSSH's. Take the .pub file of the key that signed."
        ) from e
    if not isinstance(public, ed25519.Ed25519PublicKey):
        raise ReportError(NOT_A_KEY)
    blob, made = _unpacked(signature)
    expected = _key_blob(public)
    if blob != expected:
        raise ReportError(
            f"This report was signed with another key ({_fingerprint(blob)}) than the signer's "
            f"({_fingerprint(expected)})."
        )
    try:
        public.verify(made, _signed(data))
    except Exception as e:  # InvalidSignature
        raise ReportError(
            "The signature does not fit this report. The report was changed after it was signed, or the signature is "
            "another report's."
        ) from e
    return _fingerprint(expected)


def _library():
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as e:
        raise ReportError(NO_LIBRARY) from e
    return serialization, ed25519


def _string(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


def _signed(data: bytes) -> bytes:
    return MAGIC + b"".join(map(_string, (NAMESPACE, b"", HASH, hashlib.sha512(data).digest())))


def _key_blob(public: Ed25519PublicKey) -> bytes:
    return _string(KIND) + _string(public.public_bytes_raw())


def _fingerprint(blob: bytes) -> str:
    return f"SHA256:{base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip('=')}"


def _unpacked(signature: bytes) -> tuple[bytes, bytes]:
    """(public key, 64 bytes of signature) of a signature file."""
    try:
        text = signature.decode("ascii").strip()
        if len(signature) > MAX_FILE or not text.startswith(BEGIN) or not text.endswith(END):
            raise ValueError
        blob = base64.b64decode("".join(text[len(BEGIN) : -len(END)].split()), validate=True)
        head = MAGIC + struct.pack(">I", VERSION)
        key, namespace, _, kind, inner = _strings(blob.removeprefix(head), 5)
        name, made = _strings(inner, 2)
        if not blob.startswith(head) or (namespace, kind, name) != (NAMESPACE, HASH, KIND):
            raise ValueError
    except (ValueError, binascii.Error, struct.error) as e:
        raise ReportError(NO_SIGNATURE) from e
    return key, made


def _strings(data: bytes, count: int) -> list[bytes]:
    """So many strings, which fill the data. Raises ValueError or struct.error when they do not."""
    out = []
    for _ in range(count):
        (length,) = struct.unpack(">I", data[:4])
        out.append(data[4 : 4 + length])
        if len(out[-1]) != length:
            raise ValueError
        data = data[4 + length :]
    if data:
        raise ValueError
    return out
