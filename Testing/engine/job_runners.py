"""A worker whose runners do what the tests of jobs need: `python job_runners.py JOBDIR`. No test itself.

An apply job says by the name of its first input how its runner behaves.
"""

import atexit
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from peftseg import worker

CHILD = "import time; time.sleep(60)"


def _note(job, name, text):
    path = Path(job.out) / name
    path.with_suffix(".tmp").write_text(text)
    path.with_suffix(".tmp").replace(path)


def quick(job, reporter):
    print("a library prints something")
    reporter.progress("work", 1, 1, loss=0.25)
    return {"answer": 42, "path": reporter.result_dir}


def cooperative(job, reporter):
    for step in range(100_000):
        reporter.check()
        if reporter.stop_keep():
            return {"kept": step}
        reporter.progress("work", step, 100_000)
        time.sleep(0.02)
    raise AssertionError("nobody stopped it")


def stubborn(job, reporter):
    """Ignores the control file and polite signals, and has children: a fork, as of a data loader, and one that left."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    children = [_fork(), subprocess.Popen([sys.executable, "-c", CHILD], start_new_session=sys.platform != "win32").pid]
    _note(job, "pids", " ".join(str(p) for p in [os.getpid(), *children]))
    reporter.log("children are there")
    while True:
        time.sleep(1)


def _fork():
    if sys.platform == "win32":
        return subprocess.Popen([sys.executable, "-c", CHILD]).pid
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
        os._exit(0)
    return pid


def hangs_at_the_end(job, reporter):
    atexit.register(time.sleep, 60)
    reporter.log("ready")
    return cooperative(job, reporter)


def killed(job, reporter):
    reporter.log(f"smaller plan: {reporter.smaller_plan}")
    print("last words before the kill", file=sys.stderr)
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def killed_once(job, reporter):
    return {"smaller_plan": True} if reporter.smaller_plan else killed(job, reporter)


def vanishes(job, reporter):
    print("a library gives up", file=sys.stderr)
    with open(reporter.result_dir.parent / "events.jsonl", "ab") as stream:
        stream.write(b'{"event": "prog')
    os._exit(77)


def crashes(job, reporter):
    raise ZeroDivisionError("seven by nothing")


def out_of_memory(job, reporter):
    raise MemoryError("no room for 8 GiB")


def two_endings(job, reporter):
    return {"event": "finished"}


def holds(job, reporter):
    """Runs until the file `go` appears."""
    while not (Path(job.out) / "go").exists():
        reporter.check()
        time.sleep(0.02)
    return {"ended": time.time()}


BEHAVIOURS = {
    f.__name__: f
    for f in (
        quick,
        cooperative,
        stubborn,
        hangs_at_the_end,
        killed,
        killed_once,
        vanishes,
        crashes,
        out_of_memory,
        two_endings,
        holds,
    )
}


def run_apply(job, reporter):
    return BEHAVIOURS[Path(job.inputs[0]).name](job, reporter)


if __name__ == "__main__":
    sys.exit(worker.main(sys.argv[1], {"apply": run_apply}))
