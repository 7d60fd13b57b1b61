"""The laboratory's commands: options that contradict are refused, and each says what to do first."""

from __future__ import annotations

import sys

import pytest

from experiments.logo.__main__ import main as logo
from experiments.train.__main__ import main as train


@pytest.fixture
def run(monkeypatch, capsys):
    """(exit code, everything said) of a program called with arguments."""

    def call(program, *arguments: str) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["program", *arguments])
        with pytest.raises(SystemExit) as done:
            program()
        said = capsys.readouterr()
        return done.value.code, " ".join((said.out + said.err).split())

    return call


def test_an_unknown_stage_is_refused(run):
    code, said = run(train, "everything")
    assert code == 2 and "no stage 'everything'" in said


def test_training_without_pictures_says_what_to_do(run):
    code, said = run(train, "vae")
    assert code == 2 and "python -m guda_core groups fetch" in said


@pytest.mark.parametrize(
    ("options", "sentence"),
    [(["--groups", "noto"], "need --live"), (["--live", "--status"], "Leave --live out")],
)
def test_options_of_logo_that_contradict_are_refused(run, options, sentence):
    code, said = run(logo, *options)
    assert code == 2 and sentence in said


def test_the_queue_is_the_same_from_any_folder(run, tmp_path, monkeypatch):
    """It used to look for what is kept relative to the working directory, and listed everything as to do."""
    there = run(logo, "--status")
    monkeypatch.chdir(tmp_path)
    code, said = run(logo, "--status")
    assert code == 0 and "kept unet-without-noto-s3" in said and (code, said) == there
