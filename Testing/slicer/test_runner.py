"""Jobs of the module: exported, queued, cancelled, found again in a later session; with the real worker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import scene_makers

from peftseg import jobs
from peftseg.config import ApplyJob
from peftseg.errors import BadInput
from peftseg.processes import start_time

PATIENCE = 60.0


@pytest.fixture
def runner(host):
    from PEFTSegmentLib.runner import Runner

    handles = []

    def start(folder: Path, python: str):
        handles.append(jobs.start(folder, python))
        return handles[-1]

    made = Runner(lambda: sys.executable, start)
    yield made
    for task in made.active:
        made.cancel(task)
    end(made, lambda: not made.busy)
    for handle in handles:
        if handle.jobdir.is_dir():
            handle.cancel()
        handle.wait(PATIENCE)  # the processes too have ended


def end(runner, condition) -> None:
    limit = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < limit, [(task.state, task.ending) for task in runner.tasks]
        runner.poll()
        time.sleep(0.02)


def apply_job(model: str, number: int = 1, note: dict | None = None) -> tuple:
    """Arguments of `Runner.submit` for one scan."""
    from PEFTSegmentLib import exchange, work

    image = exchange.image_of(scene_makers.add_scan(number))

    def build(folder: Path, paths: list) -> ApplyJob:
        return ApplyJob(None, model, tuple(map(str, paths)), str(folder / "result"), format="nrrd")

    exports = [(work._write_scan, "scan_1", image)]
    return {"purpose": "test", "title": "Testing", "scans": ["x"], **(note or {})}, exports, build


def test_a_job_is_exported_run_and_told_to_its_handler(runner, tiny_model):
    from PEFTSegmentLib import work

    heard, changes = [], []
    runner.on("test", lambda task, events: heard.append((task.state, [e["event"] for e in events])))
    runner.on_change(lambda: changes.append(len(runner.active)))
    task = runner.submit(*apply_job(tiny_model))
    assert task.state == "exporting"
    assert runner.active == [task]
    end(runner, lambda: not task.active)
    assert task.state == "finished", task.ending
    record = work.outcomes(task)[0]
    assert record["path"].is_file()
    assert "bright ball" in record["volumes_ml"]
    assert heard[-1][0] == "finished"
    assert "started" in [event for _, events in heard for event in events]
    assert not (task.folder / "scratch").is_dir()  # exported scans are deleted when a job ends
    runner.forget(task)
    end(runner, lambda: not runner.busy)
    assert not task.folder.exists()
    assert changes[0] == 1
    assert changes[-1] == 0


@pytest.mark.slow
def test_two_jobs_run_one_after_the_other(runner, tiny_model):
    first, second = runner.submit(*apply_job(tiny_model, 1)), runner.submit(*apply_job(tiny_model, 2))
    states = set()
    runner.on("test", lambda task, events: states.add((task is second, task.state)))
    end(runner, lambda: not runner.active)
    assert (first.state, second.state) == ("finished", "finished")
    started = [json.loads(line) for line in (second.folder / "events.jsonl").read_text().splitlines()]
    over = [json.loads(line) for line in (first.folder / "events.jsonl").read_text().splitlines()]
    begun = {"first": over[-1]["time"], "second": next(e["time"] for e in started if e["event"] == "started")}
    queued = any(e["event"] == "queued" for e in started + over)
    assert queued or begun["second"] >= begun["first"]


def test_a_job_is_cancelled_while_it_is_exported_and_while_it_runs(runner, tiny_model):
    exporting = runner.submit(*apply_job(tiny_model))
    runner.cancel(exporting)
    assert exporting.state == "cancelled"
    assert not exporting.folder.exists()
    running = runner.submit(*apply_job(tiny_model))
    end(runner, lambda: running.handle is not None)
    runner.cancel(running)
    end(runner, lambda: not running.active)
    assert running.state == "cancelled"
    runner.forget(running)
    end(runner, lambda: not runner.busy)
    assert not list(jobs.jobs_dir().iterdir())


def test_an_export_that_fails_is_a_failed_job_and_leaves_nothing(runner):
    def broken(scratch: Path) -> None:
        raise BadInput("The disk is full.", "Free some space.")

    task = runner.submit({"purpose": "test", "title": "x"}, [(broken,)], lambda folder, paths: None)
    end(runner, lambda: not task.active)
    assert (task.state, task.ending["message"], task.ending["remedy"]) == (
        "failed",
        "The disk is full.",
        "Free some space.",
    )
    assert not task.folder.exists()


def test_a_worker_that_dies_is_a_failed_job_with_its_log(runner, tiny_model):
    task = runner.submit(*apply_job("no such model"))
    end(runner, lambda: not task.active)
    assert task.state == "failed"
    assert "no such model" in task.ending["message"]


def test_a_job_of_an_earlier_session_is_found_again_and_its_result_taken(runner, tiny_model):
    from PEFTSegmentLib.runner import Runner

    task = runner.submit(*apply_job(tiny_model, note={"facts": "Ä"}))
    end(runner, lambda: task.handle is not None)
    runner.tasks.clear()  # Slicer has gone
    note = jobs.read_client_note(task.folder)
    jobs.write_client_note(task.folder, {**note, "client": {"pid": 2**22 + 7, "start_time": "1"}})
    later = Runner(lambda: sys.executable)
    heard = []
    later.on("test", lambda task, events: heard.append(task.state))
    found = later.find_earlier()
    assert [t.note["facts"] for t in found] == ["Ä"]
    assert found[0].note["earlier"]
    end(later, lambda: not later.active)
    assert heard[-1] == "finished"
    later.forget(found[0])


def test_jobs_of_another_running_slicer_are_left_alone(runner, tiny_model):
    from PEFTSegmentLib.runner import Runner

    task = runner.submit(*apply_job(tiny_model))
    end(runner, lambda: task.handle is not None)
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        client = {"pid": other.pid, "start_time": start_time(other.pid)}
        jobs.write_client_note(task.folder, {**jobs.read_client_note(task.folder), "client": client})
        assert Runner(lambda: sys.executable).find_earlier() == []
    finally:
        other.kill()
        other.wait()


def test_a_handler_that_waits_does_not_make_polls_pile_up(runner, tiny_model):
    depth = []

    def handler(task, events) -> None:
        depth.append(1)
        runner.poll()  # as a dialog's own event loop would
        depth.pop()
        assert not depth

    runner.on("test", handler)
    task = runner.submit(*apply_job(tiny_model))
    end(runner, lambda: not task.active)
    assert task.state == "finished"


def test_a_command_prints_json_and_is_cleaned_up(host):
    from PEFTSegmentLib.commands import Commands

    commands, ended = Commands(lambda: sys.executable), []
    command = commands.start(["models", "--json"], ended.append)
    end(commands_as_runner(commands), lambda: ended)
    assert command.code == 0
    assert "phantom-ct" in [row["id"] for row in command.result_kept]
    assert not command.folder.exists()


def commands_as_runner(commands):
    class Polled:
        tasks = ()

        def poll(self) -> None:
            before = list(commands.running)
            for command in before:
                original = command.done
                command.done = lambda c, o=original: (keep(c), o(c))
            commands.poll()

    def keep(command) -> None:
        command.result_kept = command.result() if command.code == 0 else None
        command.failure_kept = command.failure() if command.code else None

    return Polled()


def test_a_command_that_fails_gives_message_and_remedy(host):
    from PEFTSegmentLib.commands import Commands

    commands, ended = Commands(lambda: sys.executable), []
    command = commands.start(["models", "download", "nothing", "--json"], ended.append)
    end(commands_as_runner(commands), lambda: ended)
    assert command.code == 2
    assert "nothing" in command.failure_kept["message"]


def test_a_command_that_ends_while_it_is_cancelled_is_no_error(host):
    from PEFTSegmentLib.commands import Commands

    commands, ended = Commands(lambda: sys.executable), []
    command = commands.start(["--version"], ended.append)
    command.process.wait(PATIENCE)
    commands.cancel(command)
    commands.poll()
    assert ended == [command]
    assert not command.folder.exists()


def test_commands_are_ended_when_the_module_goes(host):
    from PEFTSegmentLib.commands import Commands

    commands = Commands(lambda: sys.executable)
    command = commands.start(["doctor", "--json"], lambda c: pytest.fail("nobody asked for it any more"))
    commands.stop_all()
    assert command.process.poll() is not None
    assert not command.folder.exists()
    with pytest.raises(ProcessLookupError):
        os.killpg(command.process.pid, 0)
