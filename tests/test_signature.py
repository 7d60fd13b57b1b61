"""Signatures of reports: made and checked, also by ssh-keygen; what does not fit is refused in one sentence."""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace
from zipfile import ZipFile

import pytest
import typer
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from typer.testing import CliRunner

from guda_core.cli import app, sign_command
from guda_core.errors import ReportError
from guda_core.reports import locked_key, signature
from tests.light import LightService, draw
from tests.test_report import made


def pair(private) -> tuple[bytes, bytes]:
    """(private key file, public key file) as OpenSSH writes them."""
    form = serialization.PrivateFormat.OpenSSH
    secret = private.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    told = private.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return secret, told + b" artist@example.org\n"


SECRET, PUBLIC = pair(ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
OTHER_SECRET, OTHER_PUBLIC = pair(ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32)))
CURVE_SECRET, CURVE_PUBLIC = pair(ec.generate_private_key(ec.SECP256R1()))


@pytest.fixture
def report(tmp_path):
    service = LightService()
    query = service.prepare(draw(tmp_path / "p.png", side=32).read_bytes(), prompt="cat")
    (tmp_path / "r.zip").write_bytes(made(service, query))
    (tmp_path / "key").write_bytes(SECRET)
    (tmp_path / "key").chmod(0o600)
    (tmp_path / "key.pub").write_bytes(PUBLIC)
    return tmp_path / "r.zip"


def run(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_a_report_is_signed_and_the_signer_is_told(report, tmp_path):
    done = run("sign", report, "--key", tmp_path / "key")
    assert done.exit_code == 0, done.output
    before = report.read_bytes()
    done = run("verify", report, "--signer", tmp_path / "key.pub")
    assert done.exit_code == 0 and "Signed by the holder of the key SHA256:" in done.output
    assert "The report is whole." in done.output
    assert report.read_bytes() == before  # the signature lies beside it
    (tmp_path / "other.pub").write_bytes(OTHER_PUBLIC)
    done = run("verify", report, "--signer", tmp_path / "other.pub")
    assert done.exit_code == 2 and "signed with another key" in done.output
    report.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    done = run("verify", report, "--signer", tmp_path / "key.pub")
    assert done.exit_code == 2 and "was changed after it was signed" in done.output and "Traceback" not in done.output


def test_of_a_record_without_its_zip_no_more_is_said_than_was_read(report, tmp_path):
    with ZipFile(report) as zipped:
        zipped.extractall(tmp_path)
    (tmp_path / "values.npz").write_bytes(b"other")
    alone = tmp_path / "report.json"
    for command, said in ((("sign", alone, "--key", tmp_path / "key"), "signed"),
                          (("verify", alone, "--signer", tmp_path / "key.pub"), "checked")):  # fmt: skip
        done = run(*command)
        assert done.exit_code == 0 and "whole" not in done.output
        assert f"Only the record was {said}, not the report's pictures and values." in " ".join(done.output.split())


@pytest.mark.skipif(os.name == "nt", reason="Windows' files have other rights")
def test_a_key_that_others_may_read_is_refused(report, tmp_path):
    (tmp_path / "key").chmod(0o640)
    done = run("sign", report, "--key", tmp_path / "key")
    assert done.exit_code == 2 and "Others on this machine may read this key." in done.output
    assert "chmod 600" in done.output and not report.with_name("r.zip.sig").exists()
    (tmp_path / "key.pub").chmod(0o644)
    assert "Only Ed25519 keys" in run("sign", report, "--key", tmp_path / "key.pub").output


@pytest.mark.skipif(os.name == "nt", reason="a script stands for ssh-keygen")
@pytest.mark.parametrize(
    ("said", "told"),
    [
        ('Load key "k": incorrect passphrase supplied to decrypt private key', locked_key.WRONG),
        ("debug1: x\nSigning file failed: agent refused operation\n", "It says: Signing file failed: agent refused"),
        ("ssh_askpass: exec(ask): Permission denied\nLoad key: incorrect passphrase", "It says: ssh_askpass: exec"),
        ("", "It says: status 255"),
    ],
)
def test_why_ssh_keygen_refuses_is_told_in_its_words(tmp_path, monkeypatch, said, told):
    program = tmp_path / "ssh-keygen"
    program.write_text(f"#!/bin/sh\ncat >/dev/null; printf '{said}' >&2; exit 255\n")
    program.chmod(0o700)
    monkeypatch.setattr(shutil, "which", lambda name: str(program))
    with pytest.raises(ReportError, match=re.escape(told)):
        locked_key.sign(b"report", tmp_path / "k", PASSPHRASE)


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")
def test_ssh_keygen_checks_it_and_signs_what_we_check(report, tmp_path):
    (tmp_path / "r.sig").write_bytes(signature.sign(report.read_bytes(), SECRET))
    (tmp_path / "allowed").write_bytes(b"artist " + PUBLIC)
    check = ["ssh-keygen", "-Y", "verify", "-f", tmp_path / "allowed", "-I", "artist", "-n", "guda-report", "-s"]
    done = subprocess.run([*check, tmp_path / "r.sig"], input=report.read_bytes(), capture_output=True, check=False)
    assert done.returncode == 0 and b"Good" in done.stdout
    told = signature.check(report.read_bytes(), (tmp_path / "r.sig").read_bytes(), PUBLIC)
    assert (
        told.encode()
        in subprocess.run(["ssh-keygen", "-l", "-f", tmp_path / "key.pub"], capture_output=True, check=True).stdout
    )
    sign = ["ssh-keygen", "-Y", "sign", "-f", tmp_path / "key", "-n", "guda-report", report]
    subprocess.run(sign, capture_output=True, check=True, stdin=subprocess.DEVNULL)
    assert signature.check(report.read_bytes(), report.with_name("r.zip.sig").read_bytes(), PUBLIC) == told


@pytest.mark.parametrize(
    ("data", "key", "signer", "said"),
    [
        (None, OTHER_SECRET, PUBLIC, "another key"),
        (b"other", SECRET, PUBLIC, "does not fit this report"),
        (None, SECRET, b"ssh-ed25519 AAAA", "no public key"),
        (None, SECRET, SECRET, "no public key"),
        (None, SECRET, CURVE_PUBLIC, "Only Ed25519"),
        (None, CURVE_SECRET, PUBLIC, "Only Ed25519"),
        (None, PUBLIC, PUBLIC, "Only Ed25519"),
        (None, b"", PUBLIC, "Only Ed25519"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(data, key, signer, said):
    with pytest.raises(ReportError, match=said) as e:
        signature.check(data or b"report", signature.sign(b"report", key), signer)
    assert str(e.value).endswith(".")


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")
def test_a_key_with_a_passphrase_is_named(tmp_path):
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", tmp_path / "locked"],
        check=True,
        capture_output=True,
    )
    with pytest.raises(ReportError, match="has a passphrase"):
        signature.sign(b"report", (tmp_path / "locked").read_bytes())


def test_no_byte_of_a_signature_can_be_another():
    good = signature.sign(b"report", SECRET)
    signature.check(b"report", good, PUBLIC)
    for at in range(30, len(good) - 30, 3):
        bad = bytearray(good)
        bad[at] = ord("B") if bad[at] != ord("B") else ord("C")
        with pytest.raises(ReportError):
            signature.check(b"report", bytes(bad), PUBLIC)
    for bad in (b"", good[:-40], good + b"x", b"\xff", good.replace(b"BEGIN", b"BEGUN"), good * 400):
        with pytest.raises(ReportError, match="no signature of a report"):
            signature.check(b"report", bad, PUBLIC)


def test_a_missing_file_or_package_is_named(report, tmp_path, monkeypatch):
    for command in (
        ("sign", report, "--key", tmp_path / "none"),
        ("verify", report, "--signer", tmp_path / "key.pub"),
        ("verify", report, "--signer", tmp_path / "none", "--signature", tmp_path / "key"),
    ):
        done = run(*command)
        assert done.exit_code == 2 and "There is no file" in done.output
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives", None)
    done = run("sign", report, "--key", tmp_path / "key")
    assert done.exit_code == 2 and "guda-core[sign]" in done.output


def test_only_whole_reports_are_signed(report, tmp_path):
    report.write_bytes(b"PK")
    done = run("sign", report, "--key", tmp_path / "key")
    assert done.exit_code == 2 and not report.with_name("r.zip.sig").exists()


def test_replay_looks_at_the_signature_before_it_computes(report, tmp_path):
    run("sign", report, "--key", tmp_path / "key")
    (tmp_path / "other.pub").write_bytes(OTHER_PUBLIC)
    sig = report.with_name("r.zip.sig")
    done = run("replay", report, "--signature", sig, "--signer", tmp_path / "other.pub")
    assert done.exit_code == 2 and "signed with another key" in done.output
    done = run("replay", report, "--signature", sig)
    assert done.exit_code == 2 and "--signer" in done.output


PASSPHRASE = "pass 'word\" $x"


@pytest.fixture
def locked(tmp_path):
    """A key with a passphrase; beside it one of another kind."""
    for name, kind in (("locked", "ed25519"), ("curve", "ecdsa")):
        make = ["ssh-keygen", "-q", "-t", kind, "-N", PASSPHRASE, "-f", tmp_path / name]
        subprocess.run(make, check=True, capture_output=True)
    return tmp_path / "locked"


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")
def test_a_key_with_a_passphrase_signs_by_the_variable_or_the_terminal(report, locked, tmp_path, monkeypatch):
    monkeypatch.delenv(locked_key.VARIABLE, raising=False)
    assert locked_key.is_locked(locked.read_bytes()) and not locked_key.is_locked(SECRET)
    sig, signer = report.with_name("r.zip.sig"), locked.with_name("locked.pub")
    done = run("sign", report, "--key", locked)
    assert done.exit_code == 2 and locked_key.NO_PASSPHRASE in " ".join(done.output.split()) and not sig.exists()
    monkeypatch.setenv(locked_key.VARIABLE, "wrong")
    done = run("sign", report, "--key", locked)
    assert done.exit_code == 2 and locked_key.WRONG in done.output and not sig.exists()
    monkeypatch.setenv(locked_key.VARIABLE, PASSPHRASE)
    assert run("sign", report, "--key", locked).exit_code == 0
    assert run("verify", report, "--signer", signer).exit_code == 0
    locked.chmod(0o644)
    done = run("sign", report, "--key", locked)
    assert done.exit_code == 2 and "chmod 600" in done.output
    locked.chmod(0o600)
    done = run("sign", report, "--key", tmp_path / "curve")
    assert done.exit_code == 2 and "Only Ed25519" in done.output
    monkeypatch.delenv(locked_key.VARIABLE)
    sig.unlink()
    asked = []
    monkeypatch.setattr(sign_command.sys, "stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr(typer, "prompt", lambda *said, **how: asked.append(how["hide_input"]) or PASSPHRASE)
    sign_command.sign(report, locked)
    assert asked == [True] and run("verify", report, "--signer", signer).exit_code == 0
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ReportError, match="needs the program ssh-keygen"):
        locked_key.sign(b"report", locked, PASSPHRASE)


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")
def test_a_key_with_a_passphrase_is_refused_on_windows_before_it_is_asked_for(locked, monkeypatch):
    data = locked.read_bytes()
    monkeypatch.setattr(locked_key, "os", SimpleNamespace(name="nt"))
    with pytest.raises(ReportError, match="On Windows, guda cannot sign with a key that has a passphrase"):
        locked_key.is_locked(data)
    assert not locked_key.is_locked(SECRET)


def test_what_is_no_locked_key_is_not_taken_for_one():
    head, body = locked_key.BEGIN, base64.b64encode(locked_key.MAGIC + b"\0\0\0\4aes")
    for key in (b"", PUBLIC, CURVE_SECRET, head + b"\n" + body + b"\n" + locked_key.END, head + b"*" + locked_key.END):
        assert not locked_key.is_locked(key)
