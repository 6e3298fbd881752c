"""Finding series in a copy of the OAI image archive, however its packages were unpacked."""

from __future__ import annotations

import re
from pathlib import Path

BASELINE = "00m"
VISIT = re.compile(r"\d+m")


def resolve(root: Path, relative: str) -> Path | None:
    """Folder of a series from a path such as ``0.C.2/9001104/20050830/10441602`` (``00m/`` before it or not).

    Looks below the root, its ``results`` folders and one level of packages, with and without the baseline folder.

    Returns:
        The first folder that exists, or ``None``.
    """
    for base in _bases(root):
        for folder in (base / relative, base / BASELINE / relative):
            if folder.is_dir():
                return folder
    return None


def series_folders(root: Path, subject: str, visit: str) -> list[Path]:
    """All series folders ``<visit>/<release>/<subject>/<date>/<barcode>`` of a subject's visit, sorted."""
    visits = [base / visit for base in _bases(root)]
    if visit == BASELINE:
        visits.append(root)  # a root that is the baseline folder itself
    return sorted({path for folder in visits for path in folder.glob(f"*/{subject}/*/*") if path.is_dir()})


def all_series_folders(root: Path) -> list[tuple[str, str, Path]]:
    """Visit, subject and folder ``<visit>/<release>/<subject>/<date>/<barcode>`` of all series, sorted.

    The root may be a visit's folder itself, such as ``48m``.
    """
    visits = [path for base in _bases(root) for path in base.iterdir() if VISIT.fullmatch(path.name)]
    visits += [root] if VISIT.fullmatch(root.name) else []
    return sorted(
        {
            (visit.name, folder.parts[-3], folder)
            for visit in visits
            for folder in visit.glob("*/*/*/*")
            if folder.is_dir() and folder.parts[-3].isdecimal()
        }
    )


def _bases(root: Path) -> list[Path]:
    """Folders that may hold the visits: the root, packages in it, and the ``results`` folders of both."""
    packages = [root, *sorted(path for path in root.iterdir() if path.is_dir())] if root.is_dir() else []
    return [folder for package in packages for folder in (package, package / "results") if folder.is_dir()]
