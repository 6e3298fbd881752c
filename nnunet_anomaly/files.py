"""Reading and writing so that nothing is ever half-written, and running cases in parallel so that none is lost."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import math
import multiprocessing
import os
import pickle
import shutil
import struct
import tempfile
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunet_anomaly import __version__
from nnunet_anomaly.errors import AnomalyError, InputError, NnunetFolderError

if TYPE_CHECKING:
    import SimpleITK as sitk

NNUNET_FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")

# What no other case would survive either: disk full, quota or file-size limit reached, file system read-only.
FATAL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


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


def named_file(text: str) -> Path:
    """File that a setting names: an absolute path, one below a home folder (``~``), or one below ``$nnUNet_results``.

    Whether it exists is for its reader to say. An empty text names no file, which is for the caller to see before.

    Raises:
        InputError: ``~`` means nobody's home folder.
        NnunetFolderError: the path is neither absolute nor below a home folder, and ``nnUNet_results`` is not set.
    """
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:
        raise InputError(f"'{text}' is below no home folder that is known here. Give an absolute path.") from error
    return path if path.is_absolute() else nnunet_folder("nnUNet_results") / path


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
    """Write JSON, indented and whole (see ``written_whole``); numpy scalars and arrays become plain numbers.

    Raises:
        ValueError: NaN or infinity, which JSON does not know.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, np.generic | np.ndarray):
            return value.tolist()
        if isinstance(value, Path):
            return str(value)
        raise TypeError(f"{type(value).__name__} cannot be written as JSON")

    with written_whole(path) as temporary, open(temporary, "w", encoding="utf-8") as handle:
        json.dump(content, handle, indent=4, default=plain, allow_nan=False)
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


def save_volume(
    volume: np.ndarray,
    path: Path | str,
    spacing_mm_xyz: Sequence[float],
    origin_mm: Sequence[float],
    direction: Sequence[float],
) -> None:
    """Write an array (z, y, x) as a compressed image, whole; the geometry is in SimpleITK's order (x, y, z)."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(volume)
    image.SetSpacing([float(size) for size in spacing_mm_xyz])
    image.SetOrigin([float(value) for value in origin_mm])
    image.SetDirection([float(value) for value in direction])
    write_image(image, path)


def write_image(image: sitk.Image, path: Path | str) -> None:
    """Write an image, compressed, whole, and check of a NIfTI file (``.nii.gz``, ``.nii``) that all of it arrived.

    ITK's NIfTI writer reports no error when the disk is full, and its reader none when a file is cut off: without
    this check a truncated image would take the place of a whole one.

    Raises:
        OSError: the disk is full, or the file could not be written for another reason.
    """
    import SimpleITK as sitk

    with written_whole(path) as temporary:
        try:
            sitk.WriteImage(image, str(temporary), True)
        except RuntimeError as error:
            raise OSError(_why_not_written(temporary.parent), f"not written: {error}", str(path)) from error
        if _is_nifti(temporary) and not _is_whole_nifti(temporary):
            raise OSError(_why_not_written(temporary.parent), "not written whole; is the disk full?", str(path))


def read_image(path: Path | str) -> sitk.Image:
    """Read an image and check that none of it is missing or damaged, and of a NIfTI file that none is NaN or infinite.

    ITK reads NaN and infinity in a NIfTI file as 0 without a word; in other formats they come back as they are. It says
    nothing either of a NIfTI file that is cut off (see ``write_image``) or of damage to compressed data elsewhere.

    Raises:
        InputError: the file is missing, damaged, cut off, not an image, or a NIfTI file with NaN or infinity.
    """
    import SimpleITK as sitk

    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist.")
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f"{path} is not readable as an image ({reason}). Fetch this file again.") from error
    if not (_is_whole_nifti(path) if _is_nifti(path) else _has_sound_data(path)):
        raise InputError(f"{path} is cut off or damaged: its voxels are not all there. Fetch this file again.")
    if _is_nifti(path) and not _is_finite_nifti(path):
        raise InputError(f"{path} holds NaN or infinity, which would be read as 0. Replace them in the file.")
    return image


def read_grey_image(path: Path | str) -> sitk.Image:
    """``read_image`` of an image with one value a voxel.

    Raises:
        InputError: see there; or voxels of several components, such as colours.
    """
    image = read_image(path)
    if (components := image.GetNumberOfComponentsPerPixel()) > 1:
        raise InputError(f"{path} has {components} components per voxel (a colour image?); give grey values, one each.")
    return image


def _is_nifti(path: Path) -> bool:
    return path.name.endswith((".nii", ".nii.gz"))


def _is_whole_nifti(path: Path) -> bool:
    """Whether a single-file NIfTI holds as many bytes (once decompressed) as its header announces."""
    size, header = 0, b""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as handle:
            while block := handle.read(1 << 20):
                header = header or block
                size += len(block)
    except (EOFError, OSError, zlib.error):
        return False
    return len(header) >= 348 and size >= _announced_bytes(header)


def _has_sound_data(path: Path) -> bool:
    """Whether voxels of other formats are sound: where ``.mha`` or ``.nrrd`` compresses them, by their check sum.

    What is not compressed has no check sum; that voxels are missing ITK itself notices.
    """
    if path.suffix not in (".mha", ".nrrd"):
        return True
    with open(path, "rb") as handle:
        header: dict[str, str] = {}
        for line in handle:
            key, _, value = line.decode("latin-1").partition("=" if path.suffix == ".mha" else ":")
            header[key.strip().lower()] = value.strip().lower()
            if key.strip() in ("ElementDataFile", ""):  # the last line of either header
                break
        if header.get("compresseddata") == "true":
            decompressor = zlib.decompressobj()
        elif header.get("encoding") in ("gzip", "gz"):
            decompressor = zlib.decompressobj(16 + zlib.MAX_WBITS)
        else:
            return True
        try:
            while block := handle.read(1 << 20):
                decompressor.decompress(block)
        except zlib.error:
            return False
    return decompressor.eof


def _is_finite_nifti(path: Path) -> bool:
    """Whether a whole single-file NIfTI of floating-point numbers holds no NaN and no infinity; integers never do."""
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as handle:
        header = handle.read(540)
        order = "<" if int.from_bytes(header[:4], "little") in (348, 540) else ">"
        is_second_version = struct.unpack_from(f"{order}i", header)[0] == 540
        kind = struct.unpack_from(f"{order}h", header, 12 if is_second_version else 70)[0]
        dtype = {16: f"{order}f4", 64: f"{order}f8"}.get(kind)
        if dtype is None:
            return True
        offset = struct.unpack_from(*((f"{order}q", header, 168) if is_second_version else (f"{order}f", header, 108)))
        handle.seek(int(offset[0]))
        while block := handle.read(1 << 20):
            if not np.isfinite(np.frombuffer(block, dtype, count=len(block) // np.dtype(dtype).itemsize)).all():
                return False
    return True


def _announced_bytes(header: bytes) -> int:
    """Size of a NIfTI-1 or NIfTI-2 file by its header: where the voxels begin, and how many bits they take."""
    order = "<" if int.from_bytes(header[:4], "little") in (348, 540) else ">"
    if struct.unpack_from(f"{order}i", header)[0] == 540:
        bits = struct.unpack_from(f"{order}h", header, 14)[0]
        dimensions = struct.unpack_from(f"{order}8q", header, 16)
        offset = struct.unpack_from(f"{order}q", header, 168)[0]
    else:
        bits = struct.unpack_from(f"{order}h", header, 72)[0]
        dimensions = struct.unpack_from(f"{order}8h", header, 40)
        offset = struct.unpack_from(f"{order}f", header, 108)[0]
    return int(offset) + math.prod(dimensions[1 : 1 + dimensions[0]]) * bits // 8


def _why_not_written(folder: Path) -> int:
    """errno of a write that ITK did not explain, found by writing to the same folder once more."""
    try:
        with tempfile.TemporaryFile(dir=folder) as handle:
            handle.write(bytes(1 << 20))
            handle.flush()
    except OSError as error:
        return error.errno or errno.EIO
    return errno.EIO


def sha256_of(paths: Iterable[Path]) -> str:
    """Digest of the names and contents of some files, in the order of their names; it survives copying them."""
    digest = hashlib.sha256()
    for path in sorted(paths, key=lambda path: path.name):
        digest.update(path.name.encode() + b"\0")
        with open(path, "rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def made_from(paths: Iterable[Path], settings: Any) -> Any:
    """What a result is made from, as JSON gives it back: files (path, size, time of change), settings, our version.

    A file that does not exist has neither size nor time; that it is missing is said by whoever reads it.

    Written beside the result it tells a later run whether the case is finished (``is_up_to_date``).
    """
    files = [
        [str(path.resolve()), *((path.stat().st_size, path.stat().st_mtime_ns) if path.exists() else (None, None))]
        for path in paths
    ]
    return json.loads(json.dumps({"version": __version__, "files": files, "settings": settings}))


def is_up_to_date(record: Path, source: Any) -> bool:
    """Whether a JSON record is there and its ``"made_from"`` equals ``source``; a result of something else is stale.

    So is a record that cannot be read.
    """
    if not record.is_file():
        return False
    try:
        content = load_json(record)
    except InputError:
        return False
    return isinstance(content, dict) and content.get("made_from") == source


def place(source: Path, target: Path, *, copy: bool) -> None:
    """Put ``source`` at ``target``: a relative symbolic link, or a copy; an existing target is replaced.

    Where ``target`` is the source itself, nothing happens: a link to itself would lose the file.
    """
    if target.exists() and not target.is_symlink() and source.resolve() == target.resolve():
        return
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


def remove_left_overs(folder: Path, *, older_than_s: float = 0) -> None:
    """Remove temporary files that a killed run left in a folder: nnU-Net would take them for cases.

    Args:
        folder: and all folders in it; need not exist.
        older_than_s: leave files that changed within so many seconds, where another run may write at the same time.
    """
    for path in folder.rglob(".partial_*"):
        try:
            age_s = time.time() - path.lstat().st_mtime
        except FileNotFoundError:  # the other run has finished it
            continue
        if not older_than_s or age_s >= older_than_s:
            path.unlink(missing_ok=True)


def end_with_parent() -> None:
    """Make this worker end when its parent is killed: a left-over worker would write into the next run's files."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


class InlineExecutor(Executor):
    """An executor that does the work at once, in this process: for one case a worker's start would cost most."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call the function now; its result or exception is in the future."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class WorkerPool(ProcessPoolExecutor):
    """Spawned workers that end with this process, and whose errors always come back."""

    def __init__(self, num_processes: int) -> None:
        context = multiprocessing.get_context("spawn")
        super().__init__(num_processes, mp_context=context, initializer=end_with_parent)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """As the base; an error that cannot be sent back, which would break the pool, is sent as its text."""
        return super().submit(_with_errors_that_come_back, fn, *args, **kwargs)


def _with_errors_that_come_back(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return function(*args, **kwargs)
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            raise RuntimeError(f"{type(error).__name__}: {error}") from None
        raise


@contextmanager
def open_pool(num_processes: int) -> Iterator[Executor]:
    """Spawned workers that end with this process; with 1 or less, this process itself.

    Raises:
        AnomalyError: a worker process was ended from outside.
    """
    if num_processes <= 1:
        yield InlineExecutor()
        return
    with WorkerPool(num_processes) as pool:
        try:
            yield pool
        except BrokenProcessPool as error:
            raise AnomalyError(
                "A worker process was ended from outside, most often for lack of memory. Finished cases are kept; run "
                "it again with fewer processes (-np; in nnU-Net's validation nnUNet_def_n_proc)."
            ) from error
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def settle(writing: deque[Future[Any]], *, at_most: int = 0) -> None:
    """Wait until at most so many of these futures are left in the queue, oldest first; one that failed raises.

    Called after every case it keeps what waits to be written within bounds, and finds out soon when a disk is full.
    """
    while writing and (len(writing) > at_most or writing[0].done()):
        writing.popleft().result()


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

    Raises:
        OSError: the disk is full or read-only: no case after this one could succeed, so that the run stops.
        AnomalyError: a worker process was ended from outside.
    """
    from tqdm import tqdm

    outcome = Outcome()

    def settle(name: str, get: Callable[[], Any]) -> None:
        try:
            result = get()
        except (KeyboardInterrupt, BrokenProcessPool):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in FATAL_ERRNOS:
                raise
            outcome.failed[name] = f"{type(error).__name__}: {error}"
        else:
            (outcome.skipped if result is False else outcome.done).append(name)

    with tqdm(total=len(cases), desc=description, unit="case") as bar:
        if num_processes <= 1 or len(cases) <= 1:
            for name, arguments in cases:
                settle(name, partial(function, *arguments))
                bar.update()
        else:
            with open_pool(min(num_processes, len(cases))) as pool:
                futures = {pool.submit(function, *arguments): name for name, arguments in cases}
                for future in as_completed(futures):
                    settle(futures[future], future.result)
                    bar.update()
    order = {name: index for index, (name, _) in enumerate(cases)}
    outcome.done.sort(key=order.__getitem__)
    outcome.skipped.sort(key=order.__getitem__)
    outcome.failed = {name: outcome.failed[name] for name in sorted(outcome.failed, key=order.__getitem__)}
    return outcome
