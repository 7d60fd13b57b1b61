"""`guda unlearn` in several processes: what one process makes, byte by byte."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import guda_core
from guda_core import offline
from guda_core.cli.jobs_progress import clock, follow_jobs
from guda_core.diffusion.cards import find_card
from guda_core.errors import OptionError
from guda_core.jobs import job as jobs_job
from guda_core.jobs.driver import Event, failure
from guda_core.jobs.environ import once_a_process
from guda_core.jobs.job import Job, Stopped, Told, perform
from guda_core.jobs.local_pool import Share, share_of
from guda_core.paths import cache_dir
from guda_core.unlearning import group_jobs
from guda_core.unlearning.adapter_files import NOTHING_FORGOTTEN
from guda_core.unlearning.group_jobs import Asked, Found, first_job, is_done, look
from guda_core.unlearning.loop import Progress
from tests.job_works import Here
from tests.once import copied
from tests.own_pictures import guda
from tests.own_workspace import own_workspace, plant

FEW = ("--steps", "2", "--batch", "1", "--rank", "2")
CHANGES = (("batch", 1), ("rank", 2), ("steps", 2))


def made(home: Path) -> dict[str, bytes]:
    """The weights and healths of a workspace's adapters, by file."""
    folder = home / "runs" / "brush" / "artists" / "adapters"
    files = [p for p in sorted(folder.glob("*/*")) if p.name in ("adapter_model.safetensors", "health.json")]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def unlearned(home: Path) -> dict[str, bytes]:
    """A workspace of which one process has unlearned two groups, one after the other; what it made."""
    copied("unlearned-few", home, _unlearn)
    return made(home)


def _unlearn(home: Path) -> None:
    own_workspace(home, adapters_too=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GUDA_HOME", str(home))
        guda("unlearn", *FEW, "--groups", "bo-chan,dee")


def taken_away(home: Path, group: str) -> dict[str, bytes]:
    """What one process made of a group; there is nothing in the workspace afterwards."""
    alone = {name: data for name, data in unlearned(home).items() if name.startswith(group)}
    assert len(alone) == 2
    shutil.rmtree(home / "runs")
    return alone


def test_a_worker_makes_what_one_process_makes(home):
    alone = taken_away(home, "bo-chan")
    said = guda(
        "unlearn", *FEW, "--groups", "bo-chan", "--workers", "2"
    )  # the second has nothing to do, and is not begun
    assert made(home) == alone and "On 2 workers on this machine" in said and "1 of 1" in said


def test_a_job_that_is_left_between_two_steps_goes_on_from_there(home, monkeypatch):
    alone = taken_away(home, "dee")
    monkeypatch.setattr(jobs_job, "SECONDS", 0.0)  # every step is told
    asked = Asked("artists", "brush", groups=("dee",), changes=CHANGES)
    (job,) = group_jobs.group_jobs(asked, "brush", _found(first_job(asked, "brush")))

    def leave(told: Told) -> None:
        if told.fraction > 0:
            raise Stopped  # as a worker does whose driver is gone

    with pytest.raises(Stopped):
        perform(job, leave)
    assert made(home) == {}
    assert perform(job, lambda told: None).kind == "done" and made(home) == alone
    timing = json.loads((home / "runs" / "brush" / "artists" / "adapters" / "dee" / "timing.json").read_text())
    assert timing["from_step"] == 1
    assert perform(job, leave).kind == "found"


def test_a_group_that_one_process_unlearns_is_waited_for_and_what_it_has_locked_is_told(home, capsys):
    own_workspace(home, adapters_too=False)
    asked = Asked("artists", "brush", groups=("dee",), changes=CHANGES)
    (job,) = group_jobs.group_jobs(asked, "brush", Found({"dee": 1.0}, {}))
    with group_jobs._opened(asked).forgetting.claim("dee"):  # as `guda unlearn` has it
        told = perform(job, lambda told: None)
    list(follow_jobs("all groups", 1, iter([Event(job, "held", 0.0, told.note, 0.0, None)])))
    (lock,) = (cache_dir() / "locks").glob("dee--*.lock")
    assert told.kind == "held" and f"Itsclaim:{lock}" in "".join(capsys.readouterr().err.split())


def test_groups_that_failed_are_named_with_their_reasons():
    jobs = [Job(g, look, Path(g)) for g in ("ann", "bo")]
    events = [Event(jobs[0], "done", 1, "", 0.5, None), Event(jobs[1], "failed", 0, "The loss is nan.", 1, None)]
    assert failure(events[:1]) is None
    assert str(failure(events)) == (
        "1 of 2 failed, the others are done. 'bo': The loss is nan. Run the same command again to try once more."
    )


def test_an_adapter_that_is_to_be_made_again_does_not_count(home, monkeypatch):
    unlearned(home)
    config = {"steps": 2, "batch": 1, "rank": 2}
    asked = Asked("artists", "brush", groups=("dee",), changes=CHANGES)
    card = find_card("brush").id
    assert is_done(asked, "dee", None)
    assert _found(first_job(asked, card)) == Found({}, {}, [])
    again = Asked("artists", "brush", groups=("dee",), changes=CHANGES, again=True)
    found = _found(first_job(again, card))
    assert list(found.costs) == ["dee"] and found.costs["dee"] > config["steps"]
    assert not is_done(again, "dee", found.before["dee"])
    health = home / "runs" / "brush" / "artists" / "adapters" / "dee" / "health.json"
    health.write_text(json.dumps({}))
    assert not is_done(asked, "dee", None) and list(_found(first_job(asked, card)).costs) == ["dee"]
    plant(health.parent, "dee", 1)  # with other settings
    assert not is_done(asked, "dee", None)


def _found(job: Job) -> Found:
    steps = job.work(*job.arguments)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def test_a_group_called_look_has_a_claim_of_its_own():
    asked = Asked("artists", "brush", Path("adapters"), groups=("look",))
    found = Found({"look": 1.0}, {})
    claims = [job.claim for job in (first_job(asked, "brush"), *group_jobs.group_jobs(asked, "brush", found))]
    assert len(set(claims)) == 2 and claims[1].name == "look"


def test_a_plan_for_several_workers_says_the_whole(home):
    own_workspace(home, adapters_too=False)
    said = " ".join(guda("unlearn", "--plan", *FEW, "--workers", "2", "--json", str(home / "plan.json")).split())
    assert "With --workers 2 on this machine (CPU threads of each: 1): about" in said, said
    plan = json.loads((home / "plan.json").read_text())
    one, two, three = (g["seconds"] * plan["share"]["slower"] for g in plan["groups"].values())
    assert plan["whole_s"] == pytest.approx(plan["encode_s"] + max(min(one, two) + three, one, two))
    assert plan["share"]["workers"] == 2 and not (home / "runs").exists()


def test_workers_share_a_machine_as_jobs_are_handed_out(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert share_of(4, devices=(), cores=8) == Share(4, 4, 2, 1.0, False)
    assert share_of(4, devices=("0", "1"), cores=8).at_once == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert share_of(3, devices=(), cores=2).slower == 3.0
    jobs = (5.0, 1.0, 1.0, 4.0)
    assert Share(2, 2, 1, 1.0, False).seconds(jobs) == 6.0  # 5 | 1 1 4
    assert Share(2, 1, 1, 1.0, True).seconds(jobs) == 11.0
    assert Share(2, 2, 1, 1.5, False).seconds(jobs) == 9.0 and Share(2, 2, 1, 1.0, False).seconds(()) == 0.0
    with pytest.raises(OptionError, match="at least one worker"):
        share_of(0)


def anew(monkeypatch) -> None:
    """For this test alone, nothing is open in this process."""
    monkeypatch.setattr(group_jobs, "_opened", once_a_process(group_jobs._opened.__wrapped__))


def test_the_library_unlearns_by_workers_what_it_unlearns_alone(home, monkeypatch):
    """Its jobs run in this process, as a worker gets them; the command above has workers of its own."""
    anew(monkeypatch)
    unlearned(home)
    few: dict[str, Any] = {"steps": 2, "batch": 1, "rank": 2}
    alone = guda_core.unlearn("artists", "brush", only=["dee"], **few)
    files = taken_away(home, "dee")
    asked = []
    monkeypatch.setattr(offline, "opened", lambda *given: asked.append(given) or closing(Here()))
    monkeypatch.setattr(group_jobs, "set_up_libraries", lambda: None)
    heard: list[tuple[str, Progress]] = []
    told = guda_core.unlearn(
        "artists", "brush", only=["dee"], workers=1, progress=lambda *said: heard.append(said), **few
    )
    assert {g for g, _ in heard} == {"dee"} and heard[-1][1].note == group_jobs.HEALTH_SAYS
    assert made(home) == files and told == alone and set(told) == {"dee"}
    assert guda_core.unlearn("artists", "brush", only="dee", workers=1, **few) == alone
    assert asked == [(1, None)] * 2


def test_the_library_takes_groups_by_name_and_tells_which_of_how_many(home, caplog):
    own_workspace(home, adapters_too=False)
    heard: list[tuple[str, Progress]] = []
    asked: dict[str, Any] = {"batch": 1, "rank": 2, "progress": lambda *said: heard.append(said)}
    with caplog.at_level(logging.INFO, "guda_core.offline"):
        told = guda_core.unlearn("artists", "brush", only=["Bo Chan", "dee", "Dee"], steps=3, **asked)
    assert set(told) == {"bo-chan", "dee"} == {g for g, _ in heard}
    assert NOTHING_FORGOTTEN.format(which="Dee") in caplog.messages
    assert [(p.step, p.steps) for g, p in heard if g == "dee" and not p.note] == [(1, 3), (2, 3), (3, 3)]
    assert heard[-1][1].note == group_jobs.HEALTH_SAYS and heard[-1][1].steps == 100
    steps = [m for m in caplog.messages if m.startswith("unlearn ")]
    for i, gid in enumerate(told, 1):
        own = [m for m in steps if m.startswith(f"unlearn {gid} (group {i} of 2): ")]
        assert [re.sub(r"loss [0-9.e-]+$", "loss L", m.partition(": ")[2]) for m in own] == [
            "step 1 of 3, loss L",
            "step 3 of 3, loss L",
        ]
    with pytest.raises(OptionError, match=r"no group 'Bo'\. Known: ann-lee, bo-chan, dee\."):
        guda_core.unlearn("artists", "brush", only="Bo")


def test_a_trial_that_replaces_adapters_is_warned_of_and_whoever_hears_progress_may_end_it(home, caplog):
    before = unlearned(home)

    class EnoughError(Exception): ...

    def stop(group: str, p: Progress) -> None:
        raise EnoughError

    few: dict[str, Any] = {"only": "dee", "steps": 3, "batch": 1, "rank": 2}
    with pytest.raises(EnoughError):
        guda_core.unlearn("artists", "brush", progress=stop, **few)
    assert made(home) == before
    (said,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and "unlearn" in r.name + r.msg]
    assert said.startswith("unlearn: Made again ") and "Groups: dee. The adapters of before are replaced" in said
    assert said.endswith("For a trial, name another `folder`.")
    caplog.clear()
    guda_core.unlearn("artists", "brush", folder=home / "trial", **few)  # nothing is in hand any more
    assert "replaced" not in caplog.text and made(home) == before


def test_an_id_goes_before_a_name(home):
    own_workspace(home, adapters_too=False)
    groups = guda_core.load_groups("artists")
    named = {g: dataclasses.replace(found, name="dee") for g, found in groups.groups.items() if g != "dee"}
    swapped = dataclasses.replace(
        groups, groups={**named, "dee": dataclasses.replace(groups.groups["dee"], name="Both")}
    )
    assert swapped.ids(["dee"]) == ["dee"] and swapped.ids(["Both", "ann-lee"]) == ["dee", "ann-lee"]


def test_lines_of_progress_are_apart_and_tell_the_time_that_is_left(monkeypatch, caplog):
    now = [50.0]
    monkeypatch.setattr(offline.time, "monotonic", lambda: now[0])
    told = offline._Told("unlearn dee (group 1 of 1)")
    with caplog.at_level(logging.INFO, "guda_core.offline"):
        for step in range(1, 201):
            told.hear(Progress(step, 200, 0.0002134, 1.0))
            now[0] += 4.0
    lines = [m.removeprefix("unlearn dee (group 1 of 1): ") for m in caplog.messages]
    assert lines[:3] == [
        "step 1 of 200, loss 0.000213",
        "step 5 of 200, loss 0.000213, about 13 min left",  # 10 s are over, and 2% of the steps
        "step 9 of 200, loss 0.000213, about 13 min left",
    ]
    assert lines[-2:] == ["step 197 of 200, loss 0.000213, about 12 s left", "step 200 of 200, loss 0.000213"]
    assert len(lines) == 51


def test_what_comes_before_the_steps_has_a_pace_of_its_own(monkeypatch, caplog):
    now = [0.0]
    monkeypatch.setattr(offline.time, "monotonic", lambda: now[0])
    told = offline._Told("unlearn 3 (group 2 of 9)")
    with caplog.at_level(logging.INFO, "guda_core.offline"):
        for note, seconds in (("fine-tuning", 15.0), ("", 3600.0)):
            for step in (1, 2, 3):
                told.hear(Progress(step, 3, 1.0, 1.0, note))
                now[0] += seconds
    assert [m.removeprefix("unlearn 3 (group 2 of 9)") for m in caplog.messages] == [
        ", fine-tuning: step 1 of 3, loss 1",
        ", fine-tuning: step 2 of 3, loss 1",
        ", fine-tuning: step 3 of 3, loss 1",
        ": step 1 of 3, loss 1",
        ": step 2 of 3, loss 1, about 60 min left",
        ": step 3 of 3, loss 1",
    ]


def test_the_library_refuses_sets_that_other_processes_cannot_read(home):
    own_workspace(home, adapters_too=False)
    groups = guda_core.load_groups("artists")
    with pytest.raises(OptionError, match="no group 'nobody'"):
        guda_core.unlearn(groups, "brush", only="nobody", workers=2)
    with pytest.raises(OptionError, match="give the name of a set that is in the workspace"):
        guda_core.unlearn(dataclasses.replace(groups, name="Another"), "brush", workers=2)
    with pytest.raises(OptionError, match="at least one worker"):
        guda_core.unlearn(groups, "brush", workers=0)


def test_options_that_do_not_go_together(home):
    assert "Leave out --ray" in guda("unlearn", "--plan", "--ray", "local", code=2)
    assert "no Ray cluster at somewhere" in guda("unlearn", "--groups", "noto", "--ray", "somewhere", code=2)
    assert "--workers" in guda("unlearn", "--workers", "0", code=2)


def test_the_expected_end_says_its_date_when_it_is_not_today():
    assert len(clock(0)) == 5 and len(clock(3 * 86400)) == 16


@pytest.mark.parametrize("field", ["group_set", "model", "folder", "operator", "changes", "pictures", "checkpointing"])
def test_what_was_asked_is_opened_anew_when_any_part_of_it_changes(field, monkeypatch):
    opened = []
    monkeypatch.setattr(group_jobs, "open_asked", opened.append)
    monkeypatch.setattr(group_jobs, "set_up_libraries", lambda: None)
    anew(monkeypatch)
    first = Asked("artists")
    other = Asked(**{"group_set": "artists", field: "other"})  # type: ignore[arg-type]
    for asked in (first, first, other, other):
        group_jobs._opened(asked)
    monkeypatch.setenv("GUDA_HOME", "elsewhere")
    group_jobs._opened(other)
    assert opened == [first, other, other]
