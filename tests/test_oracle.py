"""The queue of the oracle's trainings: what is in it, that done work is skipped, and that it stops in time."""

from __future__ import annotations

import itertools

import pytest
from filelock import FileLock

from experiments.logo import trainings
from experiments.logo.trainings import Job
from experiments.train import stages
from experiments.train.unet import UnetConfig
from guda_core.data.groups import load_group_set
from guda_core.errors import OptionError, TrainingError
from guda_core.unlearning.loop import Progress

GROUPS = load_group_set("emoji")
FULL_SEED = UnetConfig().loop.seed


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """Trainings of three steps that only note what they were asked for; `done` are their names."""
    done, closed = [], []

    def stage_unet(group_set, config, exclude):
        try:
            for step in range(3):
                yield Progress(step + 1, 3, 0.0, 1.0)
            done.append(Job(exclude, config.loop.seed).name)
        finally:
            closed.append(exclude)

    monkeypatch.setattr(trainings.stages, "stage_unet", stage_unet)
    monkeypatch.setattr(trainings.stages, "is_done", lambda name: name in done)
    return done, closed


def test_the_queue_has_every_group_and_the_second_seeds():
    jobs = trainings.queue(GROUPS, UnetConfig())
    assert jobs[: len(GROUPS.groups)] == [Job(g, FULL_SEED) for g in GROUPS.groups]
    rest = jobs[len(GROUPS.groups) :]
    assert rest[-1] == Job(None, trainings.SECOND_SEED) and trainings.SECOND_SEED != FULL_SEED
    assert len(rest) == 9 and {j.seed for j in rest} == {trainings.SECOND_SEED}
    assert len({j.name for j in jobs}) == len(jobs) == 17


def test_done_work_is_skipped(trained):
    done, _ = trained
    first = Job("twemoji", FULL_SEED).name
    done.append(first)
    worked = [j.name for j, p in trainings.work(GROUPS, UnetConfig()) if p.step == 1]
    assert first not in worked and len(worked) == 16
    assert list(trainings.work(GROUPS, UnetConfig())) == []


def test_it_stops_after_the_minutes_and_closes_the_training(trained, monkeypatch):
    done, closed = trained
    clock = itertools.count()
    monkeypatch.setattr(trainings.time, "monotonic", lambda: 60.0 * next(clock))
    assert len(list(trainings.work(GROUPS, UnetConfig(), minutes=3.5))) == 4
    assert done == [Job("twemoji", FULL_SEED).name] and closed == ["twemoji", "openmoji"]
    with pytest.raises(OptionError, match="positive"):
        list(trainings.work(GROUPS, UnetConfig(), minutes=0))


def test_what_is_kept_is_not_trained_again(trained):
    done, _ = trained
    kept = {Job(g, FULL_SEED).name for g in GROUPS.groups}
    list(trainings.work(GROUPS, UnetConfig(), kept=kept))
    assert len(done) == 9 and not kept & set(done)


def test_what_another_process_has_in_hand_is_left_to_it(trained):
    done, _ = trained
    stages.work_dir().mkdir(parents=True)
    with FileLock(stages.work_dir() / f"{Job('twemoji', FULL_SEED).name}.lock"):
        list(trainings.work(GROUPS, UnetConfig()))
    assert len(done) == 16 and Job("twemoji", FULL_SEED).name not in done
    list(trainings.work(GROUPS, UnetConfig()))
    assert done[16:] == [Job("twemoji", FULL_SEED).name]


def test_trainings_start_from_the_committed_vae_and_clip_when_the_cache_has_none(tmp_path, monkeypatch):
    for name, folder in (("vae", "model/vae"), ("clip", "clip")):
        assert stages._finished(name) == stages.ASSETS / folder
        (stages.work_dir() / name).mkdir(parents=True)
        (stages.work_dir() / name / "stage.json").write_text("{}")
        assert stages._finished(name) == stages.work_dir() / name
    (stages.work_dir() / "vae" / "stage.json").unlink()
    monkeypatch.setattr(stages, "ASSETS", tmp_path)
    with pytest.raises(TrainingError, match="needs the vae first"):
        stages._finished("vae")
