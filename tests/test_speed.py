"""What an installation takes: which packages count, and what they take on the disk."""

from __future__ import annotations

from importlib.metadata import distribution

from experiments.speed import brought, disk_bytes


def test_what_packages_need_counts_and_extras_that_nobody_asked_for_do_not():
    found = brought(["# the models", "", "peft>=0.1"])
    assert {"peft", "torch", "accelerate", "safetensors"} <= set(found) and "pytest" not in found
    assert "pytest-xdist" not in brought(["execnet"]) and set(brought(["execnet"])) == {"execnet"}
    assert set(brought(["pytest-xdist"])) < set(brought(["pytest-xdist[psutil]"]))


def test_all_files_of_a_package_count(tmp_path, monkeypatch):
    info = tmp_path / "small-1.0.dist-info"
    info.mkdir()
    (tmp_path / "small.py").write_bytes(b"x" * 700)
    (info / "METADATA").write_bytes(b"Metadata-Version: 2.1\nName: small\nVersion: 1.0\n")
    (info / "RECORD").write_text("small.py,,\nsmall-1.0.dist-info/METADATA,,\nsmall-1.0.dist-info/gone,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    expected = 700 + (info / "METADATA").stat().st_size
    assert disk_bytes([distribution("small")]) == disk_bytes(brought(["small"]).values()) == expected
