"""Jobs as real processes: start, cancel, kill, attach, queue, resume."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from peftseg import jobs, worker
from peftseg.config import AdaptJob, ApplyJob
from peftseg.errors import BadInput
from peftseg.events import ENDINGS, read_events
from peftseg.job_folder import KEPT, ending_of, is_alive
from peftseg.locks import FileLock
from peftseg.models import Structure
from peftseg.paths import delete_everything, home, jobs_dir
from peftseg.processes import start_time
from peftseg.study import SupportItem

RUNNERS = Path(__file__).with_name("job_runners.py")
COMMAND = (str(RUNNERS),)
PATIENCE_S = 20
posix = pytest.mark.skipif(sys.platform == "win32", reason="signals are of Unix")


def make_job(behaviour: str, out: Path) -> Path:
    job = ApplyJob(adapter="none", model=None, inputs=(str(out / behaviour),), out=str(out), device="cpu")
    return jobs.create_job(job)


def until(condition, what: str):
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited {PATIENCE_S} s in vain for {what}")


def kinds(jobdir: Path) -> list[str]:
    return [e["event"] for e in read_events(jobdir / "events.jsonl")[0]]


def seen(jobdir: Path, kind: str) -> None:
    until(lambda: kind in kinds(jobdir), f"event {kind}")


def lives(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.fixture
def run(tmp_path):
    """Start a job of a behaviour; whatever still lives at the end of the test is killed."""
    started = []

    def start(behaviour: str) -> jobs.JobHandle:
        started.append(jobs.start(make_job(behaviour, tmp_path), command=COMMAND))
        return started[-1]

    yield start
    for handle in started:
        handle.cancel(grace_s=0)
        handle.wait(PATIENCE_S)


def test_a_job_runs_and_its_events_arrive_in_order_with_one_ending(run):
    handle = run("quick")
    assert handle.state == "queued"
    ending = handle.wait(PATIENCE_S)
    events = read_events(handle.jobdir / "events.jsonl")[0]
    assert [e["event"] for e in events] == ["started", "progress", "finished"]
    assert (ending["answer"], ending["path"]) == (42, str(handle.jobdir / "result"))
    assert events[0]["device"] == "cpu"
    assert events[1]["loss"] == 0.25
    assert handle.state == "finished"
    assert handle.poll() == []
    assert "a library prints something" in (handle.jobdir / "worker.log").read_text()


def test_poll_returns_each_event_once(run):
    handle = run("quick")
    collected = []
    until(lambda: collected.extend(handle.poll()) or handle.ending, "the ending")
    assert [e["event"] for e in collected] == ["started", "progress", "finished"]


def test_a_cooperative_worker_is_cancelled_within_two_seconds(run):
    handle = run("cooperative")
    seen(handle.jobdir, "progress")
    asked = time.monotonic()
    handle.cancel()
    ending = handle.wait(PATIENCE_S)
    assert time.monotonic() - asked < 2.0
    assert ending["event"] == "cancelled"
    assert "in time" not in ending["message"]
    until(lambda: not is_alive(handle.jobdir), "the end of the process")


def test_an_uncooperative_worker_is_killed_after_the_grace_with_all_its_children(run, tmp_path):
    handle = run("stubborn")
    seen(handle.jobdir, "log")
    pids = [int(p) for p in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 3
    assert all(lives(p) for p in pids)
    asked = time.monotonic()
    handle.cancel(grace_s=0.5)
    handle.poll()
    assert handle.ending is None, "killed before the grace was over"
    ending = handle.wait(PATIENCE_S)
    assert 0.5 <= time.monotonic() - asked < 2.0
    assert ending["event"] == "cancelled"
    assert "did not stop in time" in ending["message"]
    until(lambda: not any(lives(p) for p in pids), "the end of all children")


def test_a_cancelled_worker_that_hangs_after_its_ending_is_killed_too(run, tmp_path):
    handle = run("hangs_at_the_end")
    seen(handle.jobdir, "log")
    asked = time.monotonic()
    handle.cancel(grace_s=1.0)
    assert handle.wait(PATIENCE_S)["event"] == "cancelled"
    assert time.monotonic() - asked < 3.0
    assert not is_alive(handle.jobdir)


def test_stop_and_keep_finishes_the_job(run):
    handle = run("cooperative")
    seen(handle.jobdir, "progress")
    handle.stop_and_keep()
    ending = handle.wait(PATIENCE_S)
    assert ending["event"] == "finished"
    assert ending["kept"] > 0


@posix
def test_a_worker_killed_by_signal_9_starts_once_more_with_the_smaller_plan(run):
    handle = run("killed_once")
    assert handle.wait(PATIENCE_S) == {**handle.ending, "event": "finished", "smaller_plan": True}
    assert kinds(handle.jobdir) == ["started", "log", "warning", "started", "finished"]
    assert json.loads((handle.jobdir / "retry").read_text()) == {"smaller_plan": True}


@posix
def test_a_worker_killed_by_signal_9_twice_has_failed_for_memory(run):
    handle = run("killed")
    ending = handle.wait(PATIENCE_S)
    assert (ending["event"], ending["kind"], ending["exit_code"]) == ("failed", "out_of_memory", -9)
    messages = [e["message"] for e in read_events(handle.jobdir / "events.jsonl")[0] if e["event"] == "log"]
    assert messages == ["smaller plan: False", "smaller plan: True"]
    assert "last words before the kill" in ending["log"]
    assert kinds(handle.jobdir).count("failed") == 1


def test_a_worker_that_vanishes_is_turned_into_failed_with_exit_code_and_end_of_its_log(run):
    handle = run("vanishes")
    ending = handle.wait(PATIENCE_S)
    assert (ending["event"], ending["kind"], ending["exit_code"]) == ("failed", "internal", 77)
    assert "exit code 77" in ending["message"]
    assert ending["remedy"]
    assert "a library gives up" in ending["log"]
    assert kinds(handle.jobdir) == ["started", "failed"], "the half-written line is cut off"
    assert not (handle.jobdir / "retry").exists()


@posix
def test_a_job_that_died_while_nobody_watched_is_found_as_failed(tmp_path):
    parent_script = "import sys; from peftseg import jobs; jobs.start(sys.argv[1], command=(sys.argv[2],))"
    jobdir = make_job("cooperative", tmp_path)
    parent = subprocess.run([sys.executable, "-c", parent_script, str(jobdir), str(RUNNERS)], check=True)
    assert parent.returncode == 0
    seen(jobdir, "progress")
    os.kill(json.loads((jobdir / "process.json").read_text())["pid"], signal.SIGKILL)
    until(lambda: not is_alive(jobdir), "the end of the process")
    assert [j["state"] for j in jobs.list_jobs()] == ["failed"]
    assert ending_of(jobdir) is None, "listing changes nothing"
    ending = jobs.attach(jobdir).wait(PATIENCE_S)
    assert (ending["event"], ending["exit_code"]) == ("failed", None)
    assert "no program watched" in ending["message"]


@posix
def test_a_detached_worker_survives_its_parents_death_and_another_process_attaches(tmp_path):
    script = (
        "import os, signal, sys, time; from peftseg import jobs; jobs.start(sys.argv[1], command=(sys.argv[2],));"
        "print('started', flush=True); time.sleep(600)"
    )
    jobdir = make_job("cooperative", tmp_path)
    command = [sys.executable, "-c", script, str(jobdir), str(RUNNERS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as parent:
        assert parent.stdout.readline().strip() == b"started"
        seen(jobdir, "progress")
        os.killpg(parent.pid, signal.SIGKILL)
        parent.wait()
    handle = jobs.attach(jobdir)
    first = len(handle.poll())
    until(lambda: len(handle.poll()) > 0, "progress after the parent's death")
    assert first > 0
    assert handle.state == "running"
    handle.cancel()
    assert handle.wait(PATIENCE_S)["event"] == "cancelled"


def test_attaching_does_not_take_another_process_with_the_same_id_for_the_worker(tmp_path):
    jobdir = make_job("quick", tmp_path)
    record = {"pid": os.getpid(), "start_time": "long ago"}
    (jobdir / "process.json").write_text(json.dumps(record))
    assert start_time(os.getpid()) is not None
    assert not is_alive(jobdir)
    handle = jobs.attach(jobdir)
    handle.cancel(grace_s=0)
    assert handle.wait(PATIENCE_S)["event"] == "cancelled", "and this process was not killed"


def test_two_jobs_on_one_device_run_one_after_the_other(run, tmp_path):
    first = run("holds")
    seen(first.jobdir, "started")
    second = run("quick")
    seen(second.jobdir, "queued")
    second.poll()
    assert second.state == "queued"
    queued = read_events(second.jobdir / "events.jsonl")[0][0]
    assert (queued["device"], queued["behind"]) == ("cpu", first.id)
    assert {j["id"]: j["state"] for j in jobs.list_jobs()} == {first.id: "running", second.id: "queued"}
    (tmp_path / "go").touch()
    ended = first.wait(PATIENCE_S)["ended"]
    second.wait(PATIENCE_S)
    assert kinds(second.jobdir) == ["queued", "started", "progress", "finished"]
    assert read_events(second.jobdir / "events.jsonl")[0][1]["time"] >= ended - 0.01


def test_a_queued_job_can_be_cancelled(run):
    first = run("holds")
    seen(first.jobdir, "started")
    second = run("quick")
    seen(second.jobdir, "queued")
    second.cancel()
    ending = second.wait(PATIENCE_S)
    assert ending["event"] == "cancelled"
    assert "in time" not in ending["message"], "the waiting worker stops by itself"
    assert kinds(second.jobdir) == ["queued", "cancelled"]


@posix
def test_the_lock_of_a_killed_worker_holds_nobody_up_though_its_children_live(run, tmp_path):
    first = run("stubborn")
    seen(first.jobdir, "log")
    worker_pid, *children = (int(p) for p in (tmp_path / "pids").read_text().split())
    os.kill(worker_pid, signal.SIGKILL)
    until(lambda: not is_alive(first.jobdir), "the end of the worker")
    assert all(lives(p) for p in children)
    second = run("quick")
    assert second.wait(PATIENCE_S)["event"] == "finished"
    assert "queued" not in kinds(second.jobdir)
    (first.jobdir / "retry").touch()  # no second start
    assert first.wait(PATIENCE_S)["event"] == "failed"
    until(lambda: not lives(children[0]), "the end of what the worker's group left behind")
    psutil.Process(children[1]).kill()  # left the group and lost its parent: nobody can tell whose it was


def test_a_lock_left_by_an_earlier_session_is_taken(tmp_path):
    (tmp_path / "device.lock").write_text("an id of long ago, much longer than the next")
    lock = FileLock(tmp_path / "device.lock")
    assert lock.acquire("next")
    lock.release()
    assert (tmp_path / "device.lock").read_text() == "next"


@pytest.mark.parametrize(
    ("behaviour", "code", "kind", "message"),
    [
        ("crashes", 1, "internal", "ZeroDivisionError: seven by nothing"),
        ("out_of_memory", 4, "out_of_memory", "no room for 8 GiB"),
        ("two_endings", 1, "internal", "must not be called event"),
    ],
)
def test_an_error_in_the_engine_becomes_failed_with_its_exit_code(tmp_path, behaviour, code, kind, message):
    jobdir = make_job(behaviour, tmp_path)
    done = subprocess.run([sys.executable, str(RUNNERS), str(jobdir)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")
    ending = ending_of(jobdir)
    assert (ending["event"], ending["kind"]) == ("failed", kind)
    assert message in ending["message"]
    assert ending["remedy"]
    assert "Traceback" in (jobdir / "worker.log").read_text()


def test_a_job_of_a_missing_model_fails_with_the_remedy_in_a_real_worker(tmp_path):
    item = SupportItem(str(tmp_path / "a.nii.gz"), str(tmp_path / "b.nii.gz"))
    job = AdaptJob("no-such-model", (item,), (Structure("liver", 1),), str(tmp_path / "a.safetensors"), device="cpu")
    handle = jobs.start(jobs.create_job(job))
    ending = handle.wait(60)
    assert (ending["event"], ending["kind"]) == ("failed", "bad_input")
    assert "no-such-model" in ending["message"]
    assert ending["remedy"]
    assert not (tmp_path / "a.safetensors").exists()


def test_a_job_with_an_unknown_field_fails_as_bad_input(tmp_path):
    jobdir = make_job("quick", tmp_path)
    record = json.loads((jobdir / "job.json").read_text())
    (jobdir / "job.json").write_text(json.dumps({**record, "colour": "red"}))
    assert worker.run(jobdir) == 2
    assert "'colour'" in ending_of(jobdir)["message"]


def test_a_job_that_runs_is_refused_a_second_worker(run):
    handle = run("cooperative")
    seen(handle.jobdir, "progress")
    with pytest.raises(BadInput, match="runs already"):
        worker.run(handle.jobdir)
    for function in (jobs.start, jobs.resume):
        with pytest.raises(BadInput, match="runs already"):
            function(handle.jobdir)
    with pytest.raises(BadInput, match="still runs"):
        jobs.clean_up(handle.jobdir)
    with pytest.raises(BadInput, match="still run"):
        delete_everything()


@pytest.mark.parametrize("name", KEPT)
def test_what_an_ended_run_has_left_makes_it_resumable(tmp_path, name):
    jobdir = make_job("quick", tmp_path)
    (jobdir / "events.jsonl").write_text('{"event": "cancelled", "time": 0}\n')
    assert [job["resumable"] for job in jobs.list_jobs()] == [False]
    (jobdir / name).write_bytes(b"0")
    assert [job["resumable"] for job in jobs.list_jobs()] == [True]


def test_a_cancelled_job_resumes_with_its_checkpoint_and_a_fresh_ending(run):
    handle = run("cooperative")
    seen(handle.jobdir, "progress")
    handle.cancel()
    handle.wait(PATIENCE_S)
    (handle.jobdir / "checkpoint.safetensors").write_bytes(b"0")
    until(lambda: not is_alive(handle.jobdir), "the end of the process")
    assert jobs.list_jobs()[0]["resumable"]
    with pytest.raises(BadInput, match="has ended"):
        jobs.start(handle.jobdir)
    again = jobs.resume(handle.jobdir, command=COMMAND)
    seen(again.jobdir, "progress")
    again.stop_and_keep()
    assert again.wait(PATIENCE_S)["event"] == "finished"
    assert read_events(handle.jobdir / "events.jsonl")[0][0]["resumed"] is True
    assert sum(k in ENDINGS for k in kinds(handle.jobdir)) == 1
    assert (handle.jobdir / "events-1.jsonl").is_file()
    with pytest.raises(BadInput, match="nothing to resume"):
        jobs.resume(handle.jobdir)


def test_exported_scans_are_deleted_however_a_job_ends(run, tmp_path):
    for behaviour in ("quick", "crashes", "vanishes"):
        jobdir = make_job(behaviour, tmp_path)
        (jobdir / "scratch").mkdir(exist_ok=True)
        (jobdir / "scratch" / "scan.nii").touch()
        jobs.start(jobdir, command=COMMAND).wait(PATIENCE_S)
        assert not (jobdir / "scratch").exists(), behaviour


def test_exported_scans_of_a_lost_job_are_deleted_at_the_next_start(tmp_path):
    lost, fresh = make_job("quick", tmp_path), make_job("quick", tmp_path)
    for jobdir in (lost, fresh):
        (jobdir / "scratch").mkdir(exist_ok=True)
    (lost / "process.json").write_text(json.dumps({"pid": 1 << 22, "start_time": "long ago"}))
    jobs.delete_scratch()
    assert not (lost / "scratch").exists()
    assert (fresh / "scratch").exists(), "a job that is about to start keeps its scans"


def test_a_job_that_never_started_can_be_cancelled_and_cleaned_up(tmp_path):
    jobdir = make_job("quick", tmp_path)
    handle = jobs.attach(jobdir)
    assert handle.state == "created"
    handle.cancel()
    assert handle.wait(PATIENCE_S)["event"] == "cancelled"
    jobs.clean_up(jobdir)
    assert jobs.list_jobs() == []
    with pytest.raises(BadInput, match="not a job folder"):
        jobs.clean_up(home())


def test_jobs_have_opaque_ids_in_folders_of_the_owner(tmp_path):
    jobdir = make_job("quick", tmp_path)
    assert jobdir.parent == jobs_dir()
    assert len(jobdir.name) == 32
    assert set(jobdir.name) <= set("0123456789abcdef")
    if sys.platform != "win32":
        assert [p.stat().st_mode & 0o077 for p in (jobdir, jobs_dir())] == [0, 0]
    assert jobs.find_job(jobdir.name[:6]) == jobdir
    for wrong in ("", "xyz"):
        with pytest.raises(BadInput, match="Unknown job"):
            jobs.find_job(wrong)


def test_another_interpreter_gets_nothing_of_this_ones_python(monkeypatch):
    for name in jobs.FOREIGN_VARIABLES:
        monkeypatch.setenv(name, "/slicer")
    package = str(jobs.MODULE_FOLDER)
    other = jobs.worker_environment("/opt/other/bin/python")
    assert {name: other[name] for name in jobs.FOREIGN_VARIABLES if name in other} == {"PYTHONPATH": package}
    own = jobs.worker_environment(sys.executable)
    assert own["PYTHONHOME"] == own["LD_LIBRARY_PATH"] == "/slicer"
    assert own["PYTHONPATH"].split(os.pathsep)[0] == package


def test_another_interpreter_gets_back_what_the_user_had_set_before_slicer_started(monkeypatch):
    slicers = {"PYTHONHOME", "PYTHONNOUSERSITE", "PIP_REQUIRE_VIRTUALENV", "LD_LIBRARY_PATH", "QT_PLUGIN_PATH"}
    assert slicers <= set(jobs.FOREIGN_VARIABLES)
    for name in (*slicers, "SSL_CERT_FILE"):
        monkeypatch.setenv(name, "/slicer")
        monkeypatch.delenv(f"APPLAUNCHER_0_{name}", raising=False)
    other = jobs.worker_environment("/opt/other/bin/python")
    assert not slicers & set(other)
    assert other["SSL_CERT_FILE"] == "/slicer", "the only certificates that there are"
    for name in ("LD_LIBRARY_PATH", "PIP_REQUIRE_VIRTUALENV", "SSL_CERT_FILE", "PYTHONHOME", "PYTHONPATH"):
        monkeypatch.setenv(f"APPLAUNCHER_0_{name}", "/user")
    other = jobs.worker_environment("/opt/other/bin/python")
    assert other["LD_LIBRARY_PATH"] == other["PIP_REQUIRE_VIRTUALENV"] == other["SSL_CERT_FILE"] == "/user"
    assert "PYTHONHOME" not in other
    assert other["PYTHONPATH"] == str(jobs.MODULE_FOLDER)
    assert jobs.worker_environment(sys.executable)["LD_LIBRARY_PATH"] == "/slicer"


@pytest.mark.parametrize("python", [sys.executable, "/opt/other/bin/python"])
def test_no_worker_gets_the_plug_ins_of_slicers_itk(monkeypatch, python):
    monkeypatch.setenv("ITK_AUTOLOAD_PATH", "/slicer/ITKFactories")
    assert "ITK_AUTOLOAD_PATH" not in jobs.worker_environment(python)


def test_a_worker_on_linux_gets_its_memory_in_large_pages(monkeypatch):
    own = "glibc.malloc.hugetlb=1" if sys.platform.startswith("linux") else None
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    assert jobs.worker_environment(sys.executable).get("GLIBC_TUNABLES") == own
    for chosen, expected in (("glibc.malloc.check=0", f"glibc.malloc.check=0:{own}"), ("glibc.malloc.hugetlb=0",) * 2):
        monkeypatch.setenv("GLIBC_TUNABLES", chosen)
        assert jobs.worker_environment(sys.executable)["GLIBC_TUNABLES"] == (expected if own else chosen)


def test_large_pages_are_large(monkeypatch):
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.is_file() or "[never]" in setting.read_text():
        pytest.skip("this system has no large pages")
    name, version = platform.libc_ver()
    if name != "glibc" or tuple(map(int, version.split("."))) < (2, 35):
        pytest.skip(f"{name or 'this C library'} {version} does not know them")
    faults = "from resource import getrusage as r; a = r(0).ru_minflt; b = b'x' * (64 << 20); print(r(0).ru_minflt - a)"
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    found = subprocess.run(
        [sys.executable, "-c", faults], env=jobs.worker_environment(sys.executable), capture_output=True, check=True
    )
    assert int(found.stdout) < 4096, "a page of 4 KiB each would be 16384"


def test_an_interpreter_that_is_not_there_is_named(tmp_path):
    with pytest.raises(BadInput, match="no-python"):
        jobs.start(make_job("quick", tmp_path), python=str(tmp_path / "no-python"))


# folders before they are jobs, and what the client keeps with them

MAKER = """
import sys
from pathlib import Path
from peftseg import jobs
from peftseg.config import ApplyJob
folder = jobs.new_folder()
(folder / "scratch" / "scan.nii").touch()
if sys.argv[1] == "written":
    jobs.write_job(folder, ApplyJob("none", None, ("scan.nii",), "out", device="cpu"))
print(folder)
"""


def folder_of_a_dead_maker(how: str) -> Path:
    command = [sys.executable, "-c", MAKER, how]
    return Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())


def apply_job(out: Path) -> ApplyJob:
    return ApplyJob("none", None, (str(out / "quick"),), str(out), device="cpu")


def test_a_folder_takes_scans_first_and_becomes_a_job_later(tmp_path):
    folder = jobs.new_folder()
    assert sorted(p.name for p in folder.iterdir()) == ["maker.json", "scratch"]
    assert folder.parent == jobs_dir()
    if sys.platform != "win32":
        assert [p.stat().st_mode & 0o077 for p in (folder, folder / "scratch")] == [0, 0]
    assert jobs.list_jobs() == [], "it is no job yet"
    (folder / "scratch" / "scan.nii").touch()
    jobs.write_job(folder, apply_job(tmp_path))
    assert [(j["id"], j["state"]) for j in jobs.list_jobs()] == [(folder.name, "created")]
    jobs.delete_scratch()
    assert (folder / "scratch" / "scan.nii").is_file(), "its maker lives"
    assert jobs.start(folder, command=COMMAND).wait(PATIENCE_S)["event"] == "finished"
    assert not (folder / "scratch").exists()
    with pytest.raises(BadInput, match="started already"):
        jobs.write_job(folder, apply_job(tmp_path))


def test_a_folder_whose_maker_is_gone_before_it_was_a_job_is_deleted_and_that_of_a_living_one_stays():
    lost, ours = folder_of_a_dead_maker("unwritten"), jobs.new_folder()
    (lost.parent / "notes").mkdir()
    assert (lost / "scratch" / "scan.nii").is_file()
    jobs.delete_scratch()
    assert not lost.exists()
    assert (ours / "scratch").is_dir()
    assert (lost.parent / "notes").is_dir(), "no job folder by its name"


def test_a_written_job_whose_maker_is_gone_before_the_start_loses_its_scans_and_is_cancelled():
    lost = folder_of_a_dead_maker("written")
    jobs.delete_scratch()
    assert not (lost / "scratch").exists()
    assert [j["state"] for j in jobs.list_jobs()] == ["cancelled"]
    assert "before the job was started" in ending_of(lost)["message"]


def test_a_job_of_a_script_that_ended_keeps_waiting_for_its_start_when_no_scan_was_exported(tmp_path):
    script = "import sys; from peftseg import jobs; from peftseg.config import ApplyJob\n"
    script += "jobs.create_job(ApplyJob('none', None, ('scan.nii',), 'out'))"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
    jobs.delete_scratch()
    assert [j["state"] for j in jobs.list_jobs()] == ["created"]


def test_a_folder_without_a_maker_counts_as_left_behind_after_a_while():
    young, old = jobs_dir() / ("a" * 32), jobs_dir() / ("b" * 32)
    for folder in (young, old):
        folder.mkdir()
    os.utime(old, (time.time() - 3600, time.time() - 3600))
    jobs.delete_scratch()
    assert (young.exists(), old.exists()) == (True, False)


def test_what_a_job_is_for_is_kept_with_it_and_listed(tmp_path):
    folder = jobs.new_folder()
    assert jobs.read_client_note(folder) == {}
    note = {"purpose": "pre-segment", "scan": "Köpfchen 1", "path": tmp_path, "score": float("nan")}
    jobs.write_client_note(folder, note)
    assert jobs.read_client_note(folder) == {**note, "path": str(tmp_path), "score": None}
    jobs.write_job(folder, apply_job(tmp_path))
    assert jobs.list_jobs()[0]["note"]["scan"] == "Köpfchen 1"
    for damaged in ("{", "[1]"):
        (folder / "client.json").write_text(damaged)
        assert jobs.list_jobs()[0]["note"] == {}


def test_listing_fifty_ended_jobs_with_long_logs_reads_only_their_ends(tmp_path):
    line = json.dumps({"event": "progress", "time": 1.0, "stage": "train", "step": 1, "total": 9}) + "\n"
    last = json.dumps({"event": "finished", "time": 2.0, "rows": ["x" * 100] * 300}) + "\n"
    for _ in range(50):
        jobdir = make_job("quick", tmp_path)
        (jobdir / "events.jsonl").write_text(line * 50_000 + last)
        (jobdir / "process.json").write_text(json.dumps({"pid": 1 << 22, "start_time": "long ago"}))
    begun = time.perf_counter()
    rows = jobs.list_jobs()
    took = time.perf_counter() - begun
    assert {row["state"] for row in rows} == {"finished"}
    assert took < 1.0, f"{took:.2f} s; reading all of the logs takes more than 10 s"


def test_jobs_that_this_version_cannot_read_are_listed_so_that_they_can_be_cleaned_up(tmp_path):
    for number, text in enumerate(("{", "[]", '{"kind": "dance", "name": "x"}', '{"kind": "rank"}')):
        folder = jobs.new_folder()
        (folder / "job.json").write_text(text)
        os.utime(folder / "job.json", (number, number))
    assert [(j["kind"], j["name"]) for j in jobs.list_jobs()] == [
        ("unknown", ""),
        ("unknown", ""),
        ("unknown", "x"),
        ("rank", ""),
    ]
