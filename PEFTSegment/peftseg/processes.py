"""Which process is that, does it live, and how is it ended with its children. Torch-free, standard library only.

A process id alone is reused by the system; an id with its start time is not. psutil would do all of this, but the
client runs inside Slicer before anything is installed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

WINDOWS = sys.platform == "win32"
_PROC = Path("/proc")


def start_time(pid: int) -> str | None:
    """When a living process started, as a text to compare with an earlier one; None when there is no such process.

    A process that has ended but was not yet waited for by its parent (a zombie) counts as gone.
    """
    if pid <= 0:
        return None
    if WINDOWS:
        return _start_time_windows(pid)
    if sys.platform.startswith("linux"):
        return _start_time_linux(pid)
    return _start_time_ps(pid)


def kill_tree(pid: int, started: str) -> None:
    """Kill a process, its process group when it leads one, and all its descendants.

    When `pid` by now belongs to a process that started at another time, nothing is killed. Where the process is gone
    but its process group still has members, these are killed (a worker's children after the worker was killed).
    """
    now = start_time(pid)
    if now is not None and now != started:
        return
    if WINDOWS:
        command = ["taskkill", "/PID", str(pid), "/T", "/F"]
        subprocess.run(command, capture_output=True, check=False, creationflags=subprocess.CREATE_NO_WINDOW)
        return
    family = _descendants(pid)
    if now is not None and os.getpgid(pid) != pid:
        family.append(pid)  # run from a shell script: the group is the script's
    else:
        _kill(os.killpg, pid)
    for member in family:
        _kill(os.kill, member)


def _kill(how, pid: int) -> None:
    # Gone by itself, or (macOS) a group of zombies only.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        how(pid, signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    """Ids of the children, their children and so on; also those that left the process group."""
    children: dict[int, list[int]] = {}
    for child, parent in _parents():
        children.setdefault(parent, []).append(child)
    found, queue = [], [pid]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def _parents() -> list[tuple[int, int]]:
    """(process id, parent's id) of all processes on a Unix system."""
    if not sys.platform.startswith("linux"):
        rows = _ps("-A", "-o", "pid=,ppid=").splitlines()
        return [(int(a), int(b)) for a, b in (row.split() for row in rows if row.strip())]
    stats = [(int(p.name), _linux_stat(int(p.name))) for p in _PROC.iterdir() if p.name.isdigit()]
    return [(pid, int(stat[1])) for pid, stat in stats if stat]


def _linux_stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the state on; the command before it may hold blanks and brackets."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()


def _start_time_linux(pid: int) -> str | None:
    stat = _linux_stat(pid)
    if stat is None or stat[0] in "ZX":
        return None
    boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()  # ticks count from the start of the system
    return f"{boot}:{stat[19]}"


def _ps(*arguments: str) -> str:
    """Output of `ps` in plain English and universal time, so that it can be compared."""
    environment = {**os.environ, "LC_ALL": "C", "TZ": "UTC"}
    command = ["ps", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment).stdout


def _start_time_ps(pid: int) -> str | None:
    state, _, started = _ps("-p", str(pid), "-o", "stat=,lstart=").strip().partition(" ")
    return None if not state or state.startswith("Z") else " ".join(started.split())


def _start_time_windows(pid: int) -> str | None:
    import ctypes
    from ctypes import wintypes

    query_limited_information, still_active = 0x1000, 259
    kernel = ctypes.WinDLL("kernel32", use_last_error=True)
    kernel.OpenProcess.restype = wintypes.HANDLE
    handle = kernel.OpenProcess(query_limited_information, False, wintypes.DWORD(pid))
    if not handle:
        return None
    handle = wintypes.HANDLE(handle)
    try:
        code = wintypes.DWORD()
        if not kernel.GetExitCodeProcess(handle, ctypes.byref(code)) or code.value != still_active:
            return None
        times = [wintypes.FILETIME() for _ in range(4)]  # creation, exit, kernel, user
        if not kernel.GetProcessTimes(handle, *(ctypes.byref(t) for t in times)):
            return None
        return str((times[0].dwHighDateTime << 32) | times[0].dwLowDateTime)
    finally:
        kernel.CloseHandle(handle)
