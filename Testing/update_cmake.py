"""Write the lists of scripts and resources in PEFTSegment/CMakeLists.txt anew, after files were added or removed.

    python Testing/update_cmake.py

What git tracks or would track counts.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODULE = ROOT / "PEFTSegment"
CMAKE = MODULE / "CMakeLists.txt"
LISTS = ("MODULE_PYTHON_SCRIPTS", "MODULE_PYTHON_RESOURCES")


def module_files() -> tuple[list[str], list[str]]:
    """Scripts and resources of the module, relative to its folder."""
    done = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate", "."],
        cwd=MODULE,
        capture_output=True,
        check=True,
        encoding="utf-8",
    )
    names = sorted(n for n in done.stdout.split("\0") if n and (MODULE / n).is_file() and n != CMAKE.name)
    return [n for n in names if n.endswith(".py")], [n for n in names if not n.endswith(".py")]


def listed_files(text: str) -> tuple[list[str], list[str]]:
    """Scripts and resources that the text of a CMakeLists.txt lists."""
    scripts, resources = (re.search(rf"set\({name}\n(.*?)  \)", text, re.DOTALL)[1].split() for name in LISTS)
    return scripts, resources


def updated(text: str, files: tuple[list[str], list[str]]) -> str:
    """The text with other lists."""
    for name, entries in zip(LISTS, files, strict=True):
        lines = "".join(f"  {entry}\n" for entry in entries)
        text = re.sub(rf"(set\({name}\n).*?(  \))", lambda m, lines=lines: m[1] + lines + m[2], text, flags=re.DOTALL)
    return text


def main() -> None:
    """Write the file where it differs."""
    old = CMAKE.read_text(encoding="utf-8")
    new = updated(old, module_files())
    if new != old:
        CMAKE.write_text(new, encoding="utf-8", newline="\n")
    print(f"{CMAKE.relative_to(ROOT)}: {'written' if new != old else 'up to date'}")


if __name__ == "__main__":
    main()
