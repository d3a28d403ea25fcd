"""What the module costs Slicer's own thread and memory: `python Testing/bench/bench_gui.py`, on the stand-in for Slicer.

Four figures: the longest call on the GUI thread while an adaptation of real size runs (clicked as a person would), the
same while a large scan is applied, memory by number of jobs, and how long one look of the whole module takes with 500
segments, 50 support scans and 200 adapters. Slicer's own drawing and reading are not in it: the stand-in has no 3D and
draws on request.
"""

from __future__ import annotations

import gc
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

HOME = tempfile.mkdtemp(prefix="peftsegment-bench-")
os.environ["PEFTSEGMENT_HOME"] = HOME
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "Testing"), str(ROOT / "Testing" / "slicer"), str(ROOT / "PEFTSegment")]

import numpy as np  # noqa: E402
import slicerhost  # noqa: E402

JOBS = 20
WARM_UP = 5
LARGE = (300, 512, 512)
PATIENCE_S = 900


class Heart:
    """Beats every 5 ms on the GUI thread: the longest pause between two beats, in wall time and in time computing."""

    def __init__(self) -> None:
        import qt

        self.timer = qt.QTimer()
        self.timer.setInterval(5)
        self.timer.timeout.connect(self.beat)
        self.start()

    def start(self) -> None:
        """Forget what was."""
        self.last = time.perf_counter(), time.thread_time()
        self.wall = self.computing = 0.0
        self.timer.start()

    def beat(self) -> None:
        """Note the pause since the last beat."""
        now = time.perf_counter(), time.thread_time()
        self.wall = max(self.wall, now[0] - self.last[0])
        self.computing = max(self.computing, now[1] - self.last[1])
        self.last = now


def memory_mb() -> float:
    """Resident memory of this process."""
    gc.collect()
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise SystemExit("This bench reads /proc and runs on Linux only.")


def report(what: str, host, heart: Heart) -> None:
    """Print the longest slot and the longest pause since the last report."""
    from slicerhost import signals

    own = {n: s for n, s in signals.slot_seconds.items() if "Heart" not in n}
    seconds, name = max(((s, n) for n, s in own.items()), default=(0.0, ""))
    print(
        f"{what}: longest call {1000 * seconds:.0f} ms ({name}); longest pause {1000 * heart.wall:.0f} ms, of it "
        f"computing {1000 * heart.computing:.0f} ms"
    )
    signals.slot_seconds.clear()
    heart.start()


def adapt(host, module, heart: Heart) -> None:
    """Adapt phantom-ct to five made-up scans and wait until the adapter is saved."""
    from peftseg import phantom
    from PEFTSegmentLib import sample_data, scans, structures

    context = module.main.context
    sample_data.load_made_up_scans()
    context.state.model = "phantom-ct"
    structures.write(context.state, phantom.structures_named(["gallbladder", "aorta"]))
    for scan in scans.usable_scans():
        import slicer

        labels = slicer.mrmlScene.GetFirstNodeByName(f"{scan.GetName()} labels")
        context.support.add(scan, labels)
    context.state.minutes = 1.0
    host.process_events(200)
    panel = module.main.panels[2]
    module.main.unfold(3)
    host.process_events(200)
    report("loading five scans and filling the table (before the job)", host, heart)
    panel.ui.adaptButton.click()
    host.wait_for(lambda: not context.runner.busy and "saved" in panel.section.text, PATIENCE_S, "the adapter")
    report("adapting to five scans, from the click to the saved adapter", host, heart)


def apply_large(host, module, heart: Heart) -> None:
    """Try phantom-ct on a scan of 150 MB, cancelled once it runs."""
    import slicer

    from PEFTSegmentLib import scans

    values = np.random.default_rng(0).integers(-1000, 1000, LARGE, dtype=np.int16)
    scan = slicer.util.addVolumeFromArray(values, name="large")
    del values
    context = module.main.context
    context.state.model = "phantom-ct"
    scans.show_scan(scan)
    context.refresh()
    host.process_events(300)
    report(f"a scan of {LARGE[2]}x{LARGE[1]}x{LARGE[0]} voxels appears", host, heart)
    module.main.panels[0].try_on_scan()
    host.wait_for(lambda: any(t.handle is not None for t in context.runner.tasks), 120, "the export")
    host.process_events(1000)
    for task in context.runner.active:
        context.runner.cancel(task)
    host.wait_for(lambda: not context.runner.busy, 120, "the end")
    report("exporting it and starting a job", host, heart)
    slicer.mrmlScene.RemoveNode(scan)


def many_jobs(host, module) -> None:
    """Memory of this process after each of many small jobs."""
    import scene_makers

    from PEFTSegmentLib import scans

    scene_makers.install_tiny_model(Path(HOME))
    context = module.main.context
    context.models_changed()
    context.state.model = "tiny"
    scans.show_scan(scene_makers.add_scan(1))
    host.process_events(200)
    used = []
    for _ in range(JOBS):
        module.main.panels[0].try_on_scan()
        host.wait_for(lambda: not context.runner.busy, 120, "a result")
        remove_results()
        host.process_events(100)
        used.append(memory_mb())
    growth = np.polyfit(np.arange(JOBS - WARM_UP), used[WARM_UP:], 1)[0]
    print(
        f"memory: {used[WARM_UP]:.0f} MB after {WARM_UP + 1} jobs, {used[-1]:.0f} MB after {JOBS}: {growth:.2f} MB a job "
        f"(results of {24**3} voxels, removed each time)"
    )


def remove_results() -> None:
    """Take the results out of the scene, so that only what the jobs leave is measured."""
    import slicer

    for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
        slicer.mrmlScene.RemoveNode(node)


def large_scene(host, module) -> None:
    """One look of the whole module with much in the scene and in the library."""
    import adapter_makers
    import scene_makers
    import slicer

    from peftseg.models import Structure
    from peftseg.paths import adapters_dir
    from PEFTSegmentLib import structures

    first = adapter_makers.make_adapter(adapters_dir() / "a-v1.safetensors", "a 0")
    for number in range(1, 200):
        adapter_makers.make_adapter(first.with_name(f"a {number}-v1.safetensors"), f"a {number}")
    context = module.main.context
    structures.write(context.state, [Structure(f"structure {n}", n + 1) for n in range(5)])
    for number in range(50):
        scan, labels = scene_makers.add_labelled_scan(number)
        for n in range(500 if number == 0 else 5):
            labels.GetSegmentation().AddEmptySegment("", f"structure {n}")
        context.support.add(scan, labels)
    for section in module.main.sections:
        section.collapsed = False
    host.process_events(500)
    times = []
    for _ in range(15):
        begin = time.perf_counter()
        module.main.refresh()
        times.append(1000 * (time.perf_counter() - begin))
    nodes = slicer.mrmlScene.GetNumberOfNodes()
    print(
        f"one look of the module with 50 support scans, 500 segments, 200 adapters ({nodes} nodes): median "
        f"{statistics.median(times):.0f} ms, longest {max(times):.0f} ms"
    )


def main() -> None:
    """Run all four and print the figures."""
    host = slicerhost.start()
    try:
        host.load_module(ROOT / "PEFTSegment" / "PEFTSegment.py")
        begin = time.perf_counter()
        module = host.show_module("PEFTSegment")
        print(f"opening the module: {1000 * (time.perf_counter() - begin):.0f} ms")
        host.wait_for(lambda: module.main.strip.examined, 60, "the look at the installation")
        heart = Heart()
        host.process_events(500)
        report("nothing to do", host, heart)
        adapt(host, module, heart)
        apply_large(host, module, heart)
        heart.timer.stop()
        many_jobs(host, module)
        large_scene(host, module)
        host.unload_module("PEFTSegment")
    finally:
        shutil.rmtree(HOME, ignore_errors=True)


if __name__ == "__main__":
    main()
