"""The feature bank of a dataset, against the features of its pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from experiments.train.clip import ClipConfig, make_clip
from guda_core.data import embeddings
from guda_core.data.dataset import Pictures
from guda_core.data.embeddings import Clip, make_bank
from guda_core.errors import ModelError
from guda_core.records import Group, GroupSet
from tests.tiny import InMemory, tiny_tokenizer

GROUPS = ("a", "b")
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)


def clip(folder) -> Clip:
    tokenizer = tiny_tokenizer(77)
    config = ClipConfig(text_width=16, text_layers=1, image_width=48, image_layers=1, max_tokens=77, projection=16)
    make_clip(config, tokenizer, 16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Clip(folder)


def test_the_bank_holds_every_training_picture_in_its_group(tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "BATCH", 2)
    own = clip(tmp_path)
    groups = ("a", "b", "a", "b", "b")
    pictures = Pictures(PIXELS, groups, tuple("12345"))
    data = InMemory(GroupSet("s", "S", {k: Group(k, k) for k in GROUPS}), {"train": pictures})
    told = list[float]()
    make_bank(own, data, told.append)
    assert told == [0.4, 0.8, 1.0] and embeddings.picture_seconds(own, data.split("train")) > 0
    bank = own.read_bank()
    for gid in GROUPS:
        expected = own.image_features(PIXELS[[i for i, g in enumerate(groups) if g == gid]])
        torch.testing.assert_close(bank[gid], expected, atol=2e-3, rtol=0)  # stored as float16
        torch.testing.assert_close(bank[gid].norm(dim=1), torch.ones(len(bank[gid])))
    assert len(own.bank_sha256()) == 64


def test_a_bank_of_another_clip_and_a_missing_one_are_said(tmp_path):
    own = clip(tmp_path)
    with pytest.raises(ModelError, match="Make them with `guda assets bank`"):
        own.bank_sha256()
    own.write_bank({"a": torch.ones(1, 16)}, "data")
    own.sha256 = "another"
    with pytest.raises(ModelError, match="made with another CLIP"):
        own.read_bank()


def test_a_bank_that_cannot_be_written_leaves_the_one_of_before(tmp_path, monkeypatch):
    own = clip(tmp_path)
    own.write_bank({"a": torch.eye(16)[:1]}, "data")

    def full(tensors, path, metadata):
        Path(path).write_bytes(b"cut short")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(embeddings, "save_file", full)
    with pytest.raises(ModelError, match=r"cannot be written.*No space left.*Free some disk space"):
        own.write_bank({"a": torch.eye(16)[1:2]}, "data")
    assert torch.equal(own.read_bank()["a"], torch.eye(16)[:1]) and not list(tmp_path.glob(".part-*"))


def test_a_bank_that_was_never_made_says_how_to_make_it(tmp_path):
    with pytest.raises(ModelError, match="Make them with `guda assets bank`"):
        clip(tmp_path).read_bank()
