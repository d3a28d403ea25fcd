"""The event log, its readers and the Reporter."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from peftseg import events
from peftseg.errors import BadInput, JobCancelled
from peftseg.events import (
    ControlFile,
    EventLog,
    Reporter,
    first_event,
    last_event,
    plain,
    read_control,
    read_events,
)


@pytest.fixture
def log(tmp_path) -> EventLog:
    return EventLog(tmp_path / "events.jsonl")


def test_every_event_is_one_line_of_json_written_at_once(log):
    log.append("started", {"device": "cpu"})
    log.append("log", {"message": "line one\nline two, Schläfe"})
    lines = log.path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["started", "log"]
    assert json.loads(lines[1])["message"] == "line one\nline two, Schläfe"
    assert all(json.loads(line)["time"] > 1.7e9 for line in lines)


@pytest.mark.parametrize("ending", events.ENDINGS)
def test_nothing_follows_an_ending_also_in_a_later_process(log, ending):
    log.append(ending)
    for later in (log, EventLog(log.path)):
        with pytest.raises(ValueError, match="after the job's ending"):
            later.append("finished")
    assert len(read_events(log.path)[0]) == 1


def test_the_kinds_are_a_closed_set(log):
    with pytest.raises(ValueError, match="hello"):
        log.append("hello")
    with pytest.raises(ValueError, match="time"):
        log.append("log", {"message": "x", "time": 3})
    assert not log.path.exists()


def test_a_half_written_last_line_is_left_for_the_next_read(log):
    log.append("log", {"message": "a"})
    whole = log.path.read_bytes()
    line = b'{"event": "log", "time": 1.0, "message": "\xc3\xa4"}\n'
    log.path.write_bytes(whole + line[:-4])  # in the middle of the letter
    first, offset = read_events(log.path)
    assert [e["message"] for e in first] == ["a"]
    assert offset == len(whole)
    assert read_events(log.path, offset) == ([], offset)
    log.path.write_bytes(whole + line)
    second, offset = read_events(log.path, offset)
    assert [e["message"] for e in second] == ["ä"]
    assert offset == len(whole + line)


def test_the_half_line_of_a_killed_writer_is_cut_off_by_the_next_writer(log):
    log.append("started")
    with open(log.path, "ab") as stream:
        stream.write(b'{"event": "prog')
    EventLog(log.path).append("failed", {"message": "died"})
    assert [e["event"] for e in read_events(log.path)[0]] == ["started", "failed"]


@pytest.mark.parametrize("line", [b"rubbish", b"\xff\xfe", b"[1]", b'{"event": "new kind"}'])
def test_a_whole_line_that_is_no_event_becomes_a_warning_and_the_rest_is_read(log, line):
    log.path.write_bytes(line + b"\n")
    EventLog(log.path).append("finished")
    assert [e["event"] for e in read_events(log.path)[0]] == ["warning", "finished"]


def test_a_log_that_is_not_there_yet_has_no_events(tmp_path):
    assert read_events(tmp_path / "events.jsonl", 0) == ([], 0)


def test_values_that_json_does_not_know_are_made_plain():
    value = {
        "loss": float("nan"),
        "dice": np.float32(0.5),
        "ranks": np.array([1, 2]),
        "path": Path("a"),
        "t": (1, None),
    }
    assert plain(value) == {"loss": None, "dice": 0.5, "ranks": [1, 2], "path": "a", "t": [1, None]}
    assert plain({"inf": np.array(np.inf), 3: True}) == {"inf": None, "3": True}
    with pytest.raises(TypeError, match="object"):
        plain(object())


def test_a_log_that_cannot_be_written_is_bad_input_with_a_remedy(tmp_path):
    log = EventLog(tmp_path / "gone" / "events.jsonl")
    with pytest.raises(BadInput, match="cannot be written"):
        log.append("started")


def test_each_event_is_echoed(tmp_path):
    heard = []
    EventLog(tmp_path / "events.jsonl", heard.append).append("log", {"message": "a"})
    assert [(e["event"], e["message"]) for e in heard] == [("log", "a")]


def test_the_reporter_of_a_job_writes_to_its_folder(tmp_path):
    reporter = Reporter.for_job(tmp_path, EventLog(tmp_path / "events.jsonl"))
    reporter.progress("train", 3, 10, eta_s=4.5, loss=0.25, ranks={"conv1": 2})
    reporter.warning("thin slices")
    reporter.log("novel")
    written = [{k: v for k, v in e.items() if k != "time"} for e in read_events(tmp_path / "events.jsonl")[0]]
    facts = {"stage": "train", "step": 3, "total": 10, "eta_s": 4.5, "loss": 0.25, "ranks": {"conv1": 2}}
    assert written == [
        {"event": "progress", **facts},
        {"event": "warning", "message": "thin slices"},
        {"event": "log", "message": "novel"},
    ]
    assert reporter.checkpoint == tmp_path / "checkpoint.safetensors"
    assert reporter.result_dir.is_dir()
    assert reporter.smaller_plan is False
    (tmp_path / "retry").write_text('{"smaller_plan": true}')
    assert Reporter.for_job(tmp_path, EventLog(tmp_path / "events.jsonl")).smaller_plan is True


def test_a_cancel_in_the_control_file_is_raised_by_check(tmp_path):
    reporter = Reporter.for_job(tmp_path, EventLog(tmp_path / "events.jsonl"))
    reporter.check()
    (tmp_path / "control").write_text("cancel")
    reporter._request._next = 0.0  # the next look is due
    with pytest.raises(JobCancelled):
        reporter.check()
    (tmp_path / "control").unlink()
    with pytest.raises(JobCancelled):
        reporter.check()


def test_stop_and_keep_does_not_cancel(tmp_path):
    (tmp_path / "control").write_text("stop_keep\n")
    reporter = Reporter.for_job(tmp_path, EventLog(tmp_path / "events.jsonl"))
    assert reporter.stop_keep()
    reporter.check()


def test_a_half_written_or_unknown_request_is_none(tmp_path):
    control = tmp_path / "control"
    assert read_control(control) == ""
    for text in ("", "canc", "cancel everything", "\x00"):
        control.write_text(text)
        assert read_control(control) == ""


def test_the_control_file_is_read_at_most_every_tenth_of_a_second(tmp_path, monkeypatch):
    reads, clock = [], [100.0]
    monkeypatch.setattr(events, "read_control", lambda path: reads.append(path) or "")
    monkeypatch.setattr(events.time, "monotonic", lambda: clock[0])
    control = ControlFile(tmp_path / "control")
    for step in range(1000):  # one second
        clock[0] = 100.0 + step / 1000
        control()
    assert 9 <= len(reads) <= 10


def test_a_silent_reporter_keeps_what_was_said_and_never_cancels():
    reporter = Reporter.silent()
    reporter.progress("train", 1, 2, loss=float("inf"))
    reporter.warning("careful")
    reporter.check()
    assert not reporter.stop_keep()
    assert reporter.checkpoint is None
    assert reporter.result_dir is None
    assert [e["event"] for e in reporter.events] == ["progress", "warning"]
    assert reporter.events[0]["loss"] is None


@pytest.mark.parametrize("size", [0, 10, 9_000, 200_000])
def test_the_last_event_is_found_however_long_it_is_and_a_half_written_line_does_not_count(tmp_path, size):
    log = EventLog(tmp_path / "events.jsonl")
    assert last_event(log.path) is None
    log.append("log", {"message": "first"})
    assert last_event(log.path)["message"] == "first"
    log.append("started", {"device": "cpu"})
    log.append("finished", {"text": "x" * size})
    with open(log.path, "ab") as stream:
        stream.write(b'{"event": "lo')
    assert last_event(log.path)["text"] == "x" * size
    assert first_event(log.path, "started")["device"] == "cpu"
    assert first_event(log.path, "failed") is None
    assert EventLog(log.path).ended


def test_a_log_of_half_a_line_has_no_events(tmp_path):
    (tmp_path / "events.jsonl").write_bytes(b'{"event": "lo')
    assert last_event(tmp_path / "events.jsonl") is None
    assert first_event(tmp_path / "events.jsonl", "log") is None
    assert first_event(tmp_path / "nowhere", "log") is None
