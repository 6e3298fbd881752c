"""Nothing half-written, no case lost: also on a full disk, after a kill and with cut-off input."""

from __future__ import annotations

import errno
import gzip
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_anomaly.errors import AnomalyError, InputError, NnunetFolderError
from nnunet_anomaly.files import (
    find_dataset_folder,
    load_json,
    named_file,
    nnunet_folder,
    open_pool,
    place,
    read_image,
    run_cases,
    save_json,
    settle,
    write_image,
    written_whole,
)


def noise_image(pixel_type: type = np.int16) -> sitk.Image:
    image = sitk.GetImageFromArray(np.random.default_rng(0).integers(0, 200, (9, 10, 11)).astype(pixel_type))
    image.SetSpacing((0.5, 0.6, 0.7))
    return image


# ---- whole files


def test_written_whole_leaves_the_old_file_when_interrupted(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), written_whole(path) as temporary:
        temporary.write_text("a part of the ne")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_written_whole_keeps_the_ending_and_the_usual_permissions(tmp_path):
    with written_whole(tmp_path / "new" / "case.1.nii.gz") as temporary:
        assert temporary.name.endswith(".nii.gz")
        temporary.write_bytes(b"1")
    (tmp_path / "plain").write_bytes(b"1")
    assert (tmp_path / "new" / "case.1.nii.gz").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_json_with_numpy_values_comes_back(tmp_path):
    save_json({"a": np.float32(0.5), "b": np.arange(3), "c": Path("x")}, tmp_path / "a.json")
    assert load_json(tmp_path / "a.json") == {"a": 0.5, "b": [0, 1, 2], "c": "x"}


def test_unreadable_json_is_an_error_with_its_name(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(InputError, match=r"a\.json is not readable"):
        load_json(tmp_path / "a.json")
    with pytest.raises(InputError, match=r"b\.json does not exist"):
        load_json(tmp_path / "b.json")


@pytest.mark.parametrize("copy", [False, True])
def test_place_replaces(tmp_path, copy):
    (tmp_path / "source").write_text("new")
    (tmp_path / "target").write_text("old")
    place(tmp_path / "source", tmp_path / "target", copy=copy)
    assert (tmp_path / "target").read_text() == "new"
    assert (tmp_path / "target").is_symlink() is not copy


# ---- images


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".nrrd"])
@pytest.mark.parametrize("pixel_type", [np.uint8, np.int16, np.float32, np.float64])
def test_images_come_back_exactly(tmp_path, ending, pixel_type):
    image = noise_image(pixel_type)
    write_image(image, tmp_path / f"a{ending}")
    back = read_image(tmp_path / f"a{ending}")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(back), sitk.GetArrayFromImage(image))
    np.testing.assert_allclose(back.GetSpacing(), image.GetSpacing(), rtol=1e-6)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".nrrd"])
def test_full_disk_is_an_error_and_leaves_nothing(tmp_path, ending):
    """A limit on the size of files cuts ITK's writing off as a full disk does, and needs no root."""
    script = f"""
        import resource
        import numpy as np, SimpleITK as sitk
        from nnunet_anomaly.files import write_image
        image = sitk.GetImageFromArray(np.random.default_rng(0).integers(0, 9999, (20, 30, 40)).astype(np.int16))
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
        try:
            write_image(image, {str(tmp_path / f"a{ending}")!r})
        except OSError as error:
            print(error.errno)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, encoding="utf-8", check=True
    )
    assert run.stdout.split()[-1] == str(errno.EFBIG)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
@pytest.mark.parametrize("kept", [0.98, 0.5, 0.01])
def test_cut_off_image_is_an_error(tmp_path, ending, kept):
    path = tmp_path / f"a{ending}"
    write_image(noise_image(), path)
    os.truncate(path, int(kept * path.stat().st_size))
    with pytest.raises(InputError, match=r"a\.nii"):
        read_image(path)


def test_compressed_file_of_a_cut_off_image_is_an_error(tmp_path):
    write_image(noise_image(), tmp_path / "a.nii")
    with gzip.open(tmp_path / "a.nii.gz", "wb") as handle:
        handle.write((tmp_path / "a.nii").read_bytes()[:-200])
    with pytest.raises(InputError, match="voxels are not all there"):
        read_image(tmp_path / "a.nii.gz")


def test_scaled_image_is_whole_although_it_is_read_as_another_type(tmp_path):
    write_image(noise_image(), tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[112:116] = np.float32(0.5).tobytes()  # scl_slope: ITK reads such a file as floating point
    (tmp_path / "a.nii").write_bytes(content)
    assert read_image(tmp_path / "a.nii").GetSizeOfPixelComponent() > 2


@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("pixel_type", [np.float32, np.float64])
def test_nan_in_nifti_is_an_error_and_not_read_as_0(tmp_path, ending, value, pixel_type):
    image = noise_image(pixel_type)
    image[3, 4, 5] = float(value)
    write_image(image, tmp_path / f"a{ending}")
    with pytest.raises(InputError, match="NaN or infinity"):
        read_image(tmp_path / f"a{ending}")


def test_missing_image_is_an_error(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_image(tmp_path / "a.nii.gz")


# ---- folders


def test_unset_variable_says_what_to_export(monkeypatch):
    monkeypatch.delenv("nnUNet_raw", raising=False)
    with pytest.raises(NnunetFolderError, match="export nnUNet_raw="):
        nnunet_folder("nnUNet_raw")


def test_files_that_settings_name(monkeypatch, tmp_path):
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    assert named_file("vgg/vgg16.pth") == tmp_path / "results" / "vgg" / "vgg16.pth"
    assert named_file("~/vgg16.pth") == Path.home() / "vgg16.pth"
    with pytest.raises(InputError, match=r"'~nobody\.of\.this\.name/vgg16\.pth' is below no home folder"):
        named_file("~nobody.of.this.name/vgg16.pth")
    monkeypatch.delenv("nnUNet_results")
    assert named_file(str(tmp_path / "vgg16.pth")) == tmp_path / "vgg16.pth"
    with pytest.raises(NnunetFolderError, match="export nnUNet_results="):
        named_file("vgg16.pth")


def test_dataset_folder_by_number_and_name(tmp_path):
    (tmp_path / "Dataset007_Knee").mkdir()
    assert find_dataset_folder(tmp_path, 7) == find_dataset_folder(tmp_path, "Dataset007_Knee")
    with pytest.raises(InputError, match="no dataset '8'"):
        find_dataset_folder(tmp_path, 8)
    (tmp_path / "Dataset007_Hip").mkdir()
    with pytest.raises(InputError, match="More than one"):
        find_dataset_folder(tmp_path, "7")


# ---- many cases


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """Let workers import this file by its name, from whatever folder pytest was started."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[__name__.count(".")]))


class PeculiarError(Exception):
    """Cannot be made from its message alone, and so not be unpickled."""

    def __init__(self, path: str, line: int) -> None:
        super().__init__(f"{path}, line {line}")


def act(what: str, folder: Path | None = None) -> bool | None:
    """One case, at module level so that workers can import it."""
    if what == "skip":
        return False
    if what == "fail":
        raise InputError("it is damaged")
    if what == "fail peculiarly":
        raise PeculiarError("file", 3)
    if what == "disk full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if what == "unreadable":
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    if what == "die":
        os._exit(1)
    if folder is not None:
        time.sleep(0.05)
        (folder / what).touch()
    return None


@pytest.mark.parametrize("processes", [1, 2])
def test_failed_cases_are_named_and_the_others_go_on(processes):
    cases = [("a", ("go",)), ("b", ("fail",)), ("c", ("skip",)), ("d", ("unreadable",)), ("e", ("go",))]
    outcome = run_cases(act, cases, processes, "testing")
    assert outcome.done == ["a", "e"]
    assert outcome.skipped == ["c"]
    assert outcome.failed == {"b": "InputError: it is damaged", "d": "PermissionError: [Errno 13] Permission denied"}
    assert list(outcome.failed) == ["b", "d"]
    assert outcome.exit_code == 1


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_that_cannot_be_sent_between_processes_fails_its_case_alone(processes):
    outcome = run_cases(act, [("a", ("fail peculiarly",)), ("b", ("go",))], processes, "testing")
    assert outcome.done == ["b"] and outcome.failed["a"].endswith("PeculiarError: file, line 3")


def test_no_cases_are_no_failure():
    assert run_cases(act, [], 4, "testing").exit_code == 0


@pytest.mark.parametrize("processes", [1, 2])
def test_full_disk_stops_the_run(tmp_path, processes):
    cases = [("a", ("disk full",)), *((str(index), (str(index), tmp_path)) for index in range(100))]
    with pytest.raises(OSError, match="No space left on device") as caught:
        run_cases(act, cases, processes, "testing")
    assert caught.value.errno == errno.ENOSPC
    assert len(list(tmp_path.iterdir())) < 100


def test_worker_that_dies_is_a_clear_error():
    with pytest.raises(AnomalyError, match="worker process was ended"):
        run_cases(act, [("a", ("die",)), ("b", ("go",))], 2, "testing")


def test_a_pool_whose_worker_dies_is_a_clear_error():
    with pytest.raises(AnomalyError, match="worker process was ended"), open_pool(2) as pool:
        pool.submit(act, "die").result()


def test_queues_of_writes_stay_short_and_failures_show_soon():
    with ThreadPoolExecutor(1) as pool:
        go, failing = threading.Event(), Future()
        failing.set_exception(OSError(errno.ENOSPC, "No space left on device"))
        writing = deque([pool.submit(go.wait) for _ in range(3)])
        settle(writing, at_most=3)
        assert len(writing) == 3
        go.set()
        settle(writing, at_most=1)
        assert len(writing) <= 1
        writing.append(failing)
        with pytest.raises(OSError, match="No space left"):
            settle(writing)


def sleep_long(folder: Path) -> None:
    """Case that leaves its worker's process id and does not end."""
    (folder / str(os.getpid())).touch()
    time.sleep(600)


def test_workers_end_when_their_parent_is_killed(tmp_path):
    script = f"""
        import sys
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_files import sleep_long
        from nnunet_anomaly.files import run_cases
        if __name__ == "__main__":
            folder = Path({str(tmp_path / "workers")!r})
            run_cases(sleep_long, [("a", (folder,)), ("b", (folder,))], 2, "testing")
    """
    (tmp_path / "workers").mkdir()
    (tmp_path / "script.py").write_text(textwrap.dedent(script))
    parent = subprocess.Popen([sys.executable, str(tmp_path / "script.py")], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "workers").iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    workers = [int(path.name) for path in (tmp_path / "workers").iterdir()]
    assert len(workers) == 2
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    while any(is_running(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(is_running(worker) for worker in workers)


def is_running(process: int) -> bool:
    """Whether a process is there and no zombie that nobody waits for."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_json_is_indented_and_ends_with_a_newline(tmp_path):
    save_json({"a": [1]}, tmp_path / "a.json")
    text = (tmp_path / "a.json").read_text()
    assert text.endswith("}\n")
    assert json.loads(text) == {"a": [1]}
