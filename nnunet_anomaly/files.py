"""Reading and writing so that nothing is ever half-written, and running cases in parallel so that none is lost."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_anomaly.errors import InputError, NnunetFolderError

NNUNET_FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


def nnunet_folder(variable: str) -> Path:
    """Folder that one of nnU-Net's three environment variables points to.

    Raises:
        NnunetFolderError: the variable is not set.
    """
    if variable not in NNUNET_FOLDERS:
        raise ValueError(f"{variable} is not one of {', '.join(NNUNET_FOLDERS)}")
    value = os.environ.get(variable)
    if not value:
        raise NnunetFolderError(
            f"The environment variable {variable} is not set. nnU-Net keeps its data in three folders; "
            f"set all of them, for example: export {variable}=/data/{variable}"
        )
    return Path(value)


def find_dataset_folder(parent: Path, dataset: int | str) -> Path:
    """Folder ``DatasetXXX_Name`` below ``parent`` for a number (101, "101") or a whole name.

    Raises:
        InputError: no such folder, or more than one with this number.
    """
    text = str(dataset)
    if text.startswith("Dataset"):
        matches = [parent / text] if (parent / text).is_dir() else []
    elif text.isdigit():
        matches = sorted(path for path in parent.glob(f"Dataset{int(text):03d}_*") if path.is_dir())
    else:
        raise InputError(f"'{text}' is neither a dataset number such as 101 nor a name such as Dataset101_Knee.")
    if not matches:
        raise InputError(f"There is no dataset '{text}' in {parent}.")
    if len(matches) > 1:
        names = ", ".join(path.name for path in matches)
        raise InputError(f"More than one dataset has the number {text} in {parent}: {names}. Give the whole name.")
    return matches[0]


@contextmanager
def written_whole(path: Path | str) -> Iterator[Path]:
    """Give a temporary path beside ``path`` with the same file ending; on success rename it to ``path``.

    A process that is killed leaves ``path`` as it was (absent or whole), never a part of it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    ending = "".join(path.suffixes[-2:]) if path.name.endswith(".gz") else path.suffix
    # the name carries no case name, so that a left-over is never mistaken for a case, and starts with a dot
    descriptor, name = tempfile.mkstemp(prefix=".partial_", suffix=ending, dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files that only their owner can read; give what a plain open() would have given
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_json(content: Any, path: Path | str) -> None:
    """Write JSON, indented and whole (see ``written_whole``); numpy scalars and arrays become plain numbers."""

    def plain(value: Any) -> Any:
        if isinstance(value, np.generic | np.ndarray):
            return value.tolist()
        if isinstance(value, Path):
            return str(value)
        raise TypeError(f"{type(value).__name__} cannot be written as JSON")

    with written_whole(path) as temporary, open(temporary, "w", encoding="utf-8") as handle:
        json.dump(content, handle, indent=4, default=plain)
        handle.write("\n")


def load_json(path: Path | str) -> Any:
    """Read JSON.

    Raises:
        InputError: the file is missing or is not JSON.
    """
    try:
        with open(path, encoding="utf-8") as handle:
            return json.load(handle)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not readable as JSON: {error}") from error


def place(source: Path, target: Path, *, copy: bool) -> None:
    """Put ``source`` at ``target``: a relative symbolic link, or a copy; an existing target is replaced."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if copy:
        with written_whole(target) as temporary:
            shutil.copyfile(source, temporary)
        return
    link = target.with_name(f".partial_link_{target.name}")
    link.unlink(missing_ok=True)
    link.symlink_to(os.path.relpath(source.resolve(), target.parent.resolve()))
    os.replace(link, target)


@dataclass
class Outcome:
    """What became of a list of cases: the names of those done and skipped, and why the others failed."""

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0 when no case failed, else 1."""
        return 1 if self.failed else 0


def run_cases(
    function: Callable[..., Any],
    cases: Sequence[tuple[str, tuple[Any, ...]]],
    num_processes: int,
    description: str,
) -> Outcome:
    """Call ``function(*arguments)`` for every ``(name, arguments)``; a failed case is named and the others go on.

    Args:
        function: at module level, so that spawned workers can import it. ``False`` as result means "skipped".
        cases: name and arguments of every case.
        num_processes: 1 or less runs in this process, more in a pool of spawned workers.
        description: text of the progress bar.
    """
    from tqdm import tqdm

    outcome = Outcome()

    def settle(name: str, get: Callable[[], Any]) -> None:
        try:
            result = get()
        except (KeyboardInterrupt, BrokenProcessPool):
            raise
        except Exception as error:
            outcome.failed[name] = f"{type(error).__name__}: {error}"
        else:
            (outcome.skipped if result is False else outcome.done).append(name)

    with tqdm(total=len(cases), desc=description, unit="case") as bar:
        if num_processes <= 1 or len(cases) <= 1:
            for name, arguments in cases:
                settle(name, partial(function, *arguments))
                bar.update()
        else:
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(min(num_processes, len(cases)), mp_context=context) as pool:
                futures = {pool.submit(function, *arguments): name for name, arguments in cases}
                for future in as_completed(futures):
                    settle(futures[future], future.result)
                    bar.update()
    order = {name: index for index, (name, _) in enumerate(cases)}
    outcome.done.sort(key=order.__getitem__)
    outcome.skipped.sort(key=order.__getitem__)
    return outcome
