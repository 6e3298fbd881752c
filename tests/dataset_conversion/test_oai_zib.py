"""The OAI-ZIB converter on tiny trees, whole and damaged in every way that we could think of."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_anomaly import files
from nnunet_anomaly.cli.main import main

NAMES = [str(9000001 + index) for index in range(6)]


def convert(tree, *options: str, np_: int = 1) -> int:
    arguments = ["convert", "oai-zib", str(tree.release), "--oai-root", str(tree.oai_root), "-d", "101"]
    return main([*arguments, "-np", str(np_), *options])


def dataset(raw: Path) -> Path:
    return raw / "Dataset101_KneeOAIZIB"


def load(path: Path):
    return json.loads(path.read_text())


def label_of(raw: Path, name: str, folder: str = "labelsTr") -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(dataset(raw) / folder / f"{name}.nii.gz")))


def fingerprint(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def failed(raw: Path) -> dict[str, str]:
    return load(dataset(raw) / "integrity_report.json")["failed"]


# ---- a whole release


def test_labels_lie_on_images_and_dataset_is_described(whole_tree, raw, capsys):
    assert convert(whole_tree) == 0
    for name in NAMES:
        np.testing.assert_array_equal(label_of(raw, name), whole_tree.truth[name])
    image = sitk.ReadImage(str(dataset(raw) / "imagesTr" / f"{NAMES[0]}_0000.nii.gz"))
    label = sitk.ReadImage(str(dataset(raw) / "labelsTr" / f"{NAMES[0]}.nii.gz"))
    assert image.GetPixelID() == sitk.sitkInt16
    assert label.GetPixelID() == sitk.sitkUInt8
    np.testing.assert_allclose(image.GetDirection(), (0, 0, -1, 1, 0, 0, 0, -1, 0), atol=1e-6)
    np.testing.assert_allclose(image.GetSpacing(), (0.36, 0.36, 0.7), atol=1e-6)

    description = load(dataset(raw) / "dataset.json")
    assert description["channel_names"] == {"0": "MR"}
    assert description["labels"]["tibial_cartilage"] == 4
    assert description["numTraining"] == 6
    assert description["overwrite_image_reader_writer"] == "SimpleITKIO"
    assert description["anomaly"] == {"channel_roles": {"0": "image"}, "roi_labels": ["femoral_bone", "tibial_bone"]}

    case = load(dataset(raw) / "cases.json")[NAMES[0]]
    assert (case["subject"], case["visit"], case["laterality"]) == (NAMES[0], "00m", "right")
    assert case["alignment"]["flip"] == "zy"
    assert case["alignment"]["score"] > case["alignment"]["runner_up_score"]
    assert case["sources"]["image"] == f"0.C.2/{NAMES[0]}/20050101/1{NAMES[0]}"
    assert case["shape"] == [12, 16, 16]
    assert case["spacing_mm"] == [0.7, 0.36, 0.36]
    assert case["label_voxels"]["femoral_bone"] == np.count_nonzero(whole_tree.truth[NAMES[0]] == 1)
    assert load(dataset(raw) / "integrity_report.json")["complete"] is True
    assert "complete" in capsys.readouterr().out


def test_intensities_stay_as_stored(whole_tree, raw, tools):
    convert(whole_tree)
    stored = sitk.GetArrayFromImage(sitk.ReadImage(str(dataset(raw) / "imagesTr" / f"{NAMES[3]}_0000.nii.gz")))
    np.testing.assert_array_equal(stored, tools.knee(3)[0])


def test_nnunet_accepts_the_dataset(whole_tree, raw, capsys):
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    convert(whole_tree)
    capsys.readouterr()
    verify_dataset_integrity(str(dataset(raw)), 1)
    said = capsys.readouterr().out
    assert "Done" in said and "WARNING" not in said and "Error" not in said


def test_five_folds_by_subject(whole_tree, raw):
    convert(whole_tree)
    splits = load(dataset(raw) / "splits_final.json")
    assert len(splits) == 5
    assert sorted(name for split in splits for name in split["val"]) == NAMES
    assert all(sorted(split["train"] + split["val"]) == NAMES for split in splits)


def test_two_fold_uses_the_releases_lists(whole_tree, raw):
    assert convert(whole_tree, "--two-fold") == 0
    assert load(dataset(raw) / "splits_final.json") == [
        {"train": NAMES[::2], "val": NAMES[1::2]},
        {"train": NAMES[1::2], "val": NAMES[::2]},
    ]


def test_folds_that_nnunet_has_preprocessed_otherwise_are_warned_about(whole_tree, raw, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    assert convert(whole_tree, "--two-fold") == 0
    planned = tmp_path / "preprocessed" / dataset(raw).name / "splits_final.json"
    planned.parent.mkdir(parents=True)
    shutil.copy(dataset(raw) / "splits_final.json", planned)
    assert convert(whole_tree, "--two-fold") == 0
    assert "other folds" not in capsys.readouterr().err
    assert convert(whole_tree) == 0
    assert f"WARNING: {planned.parent} has other folds" in capsys.readouterr().err


def test_test_list_is_held_out(whole_tree, raw, tmp_path):
    (tmp_path / "test.txt").write_text(f"# held out\n{NAMES[1]}\n{NAMES[4]}\n")
    assert convert(whole_tree, "--two-fold", "--test-list", str(tmp_path / "test.txt")) == 0
    np.testing.assert_array_equal(label_of(raw, NAMES[4], "labelsTs"), whole_tree.truth[NAMES[4]])
    assert not (dataset(raw) / "labelsTr" / f"{NAMES[4]}.nii.gz").exists()
    splits = load(dataset(raw) / "splits_final.json")
    assert splits[0] == {"train": [NAMES[0], NAMES[2], NAMES[4]][:2], "val": [NAMES[3], NAMES[5]]}
    assert load(dataset(raw) / "dataset.json")["numTraining"] == 4


def test_workers_give_the_same_files(whole_tree, raw):
    convert(whole_tree)
    alone = fingerprint(dataset(raw))
    for path in sorted(dataset(raw).rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    assert convert(whole_tree, np_=2) == 0
    assert fingerprint(dataset(raw)) == alone


def test_release_may_be_given_as_its_inner_folder(whole_tree, raw, tmp_path):
    arguments = ["convert", "oai-zib", str(whole_tree.masks.parent), "-d", "101", "-np", "1"]
    assert main([*arguments, "--oai-root", str(whole_tree.oai_root.parent)]) == 0  # the root above 00m


# ---- which way round


def test_explicit_flip_is_taken_and_noted(whole_tree, raw):
    assert convert(whole_tree, "--flip", "z") == 0
    expected = np.flip(whole_tree.truth[NAMES[0]], 1)
    np.testing.assert_array_equal(label_of(raw, NAMES[0]), expected)
    notes = load(dataset(raw) / "cases.json")[NAMES[0]]["notes"]
    assert any("fits better otherwise: best flip zy" in note for note in notes)


def test_a_case_that_lies_otherwise_fails_by_name_unless_each_may_choose(tree, raw, tools):
    tools.write_mask(tree.mask(NAMES[5]), tree.truth[NAMES[5]], flip=(1,))
    assert convert(tree) == 1
    assert "--flip per-case" in failed(raw)[NAMES[5]]
    assert convert(tree, "--flip", "per-case", "--name", "Other") == 2  # number 101 is taken
    arguments = ["convert", "oai-zib", str(tree.release), "--oai-root", str(tree.oai_root), "-d", "102", "-np", "1"]
    assert main([*arguments, "--flip", "per-case"]) == 0
    folder = raw / "Dataset102_KneeOAIZIB"
    assert load(folder / "cases.json")[NAMES[5]]["alignment"]["flip"] == "y"


def test_unclear_release_stops_and_asks(tree, raw, tools, capsys):
    for seed, name in enumerate(NAMES):
        noise = np.random.default_rng(seed).integers(0, 200, (12, 16, 16)).astype(np.int16)
        tools.write_series(tree.series(name), noise, uid=f"1.2.826.0.1.3680043.2.1125.{seed + 1}")
    assert convert(tree) == 2
    assert "give --flip" in capsys.readouterr().err
    assert not list(dataset(raw).glob("imagesTr/*"))


# ---- bad input: each a named case, the others go on


def damage_truncated_slice(tree, name, tools):
    with open(tree.series(name) / "004", "rb+") as handle:
        handle.truncate(700)
    return "004"


def damage_truncated_raw(tree, name, tools):
    with open(tree.mask(name).with_suffix(".raw"), "rb+") as handle:
        handle.truncate(1000)
    return "1000 of the 3072 bytes"


def damage_missing_raw(tree, name, tools):
    tree.mask(name).with_suffix(".raw").unlink()
    return "0 of the 3072 bytes"


def damage_mask_header(tree, name, tools):
    tree.mask(name).write_text("ObjectType = Image\n")
    return "not readable as a MetaImage header"


def damage_missing_slices(tree, name, tools):
    for number in ("005", "006"):
        (tree.series(name) / number).unlink()
    return "about 2 slices are missing"


def damage_missing_last_slice(tree, name, tools):
    (tree.series(name) / "012").unlink()
    return "(12, 16, 16) slices, rows and columns, the image (11, 16, 16)"


def damage_doubled_slice(tree, name, tools):
    image, _ = tools.knee(0)
    tools.write_series(
        tree.series(name), image[:1], uid=f"1.2.826.0.1.3680043.2.1125.{NAMES.index(name) + 1}", first_file=90
    )
    return "slices are doubled"


def damage_two_dess_series(tree, name, tools):
    tools.write_series(tree.series(name), tools.knee(1)[0], uid="1.2.826.0.1.3680043.2.1125.77", first_file=50)
    return "2 of them are a 'DESS' series"


def damage_wrong_sequence(tree, name, tools):
    for path in tree.series(name).iterdir():
        path.unlink()
    tools.write_series(tree.series(name), tools.knee(1)[0], description="SAG_T2_MAP_RIGHT")
    return "'SAG_T2_MAP_RIGHT' (12 files); none of them is a 'DESS' series"


def damage_empty_image_folder(tree, name, tools):
    for path in tree.series(name).iterdir():
        path.unlink()
    return "no readable DICOM series (0 files)"


def damage_mask_shape(tree, name, tools):
    tools.write_mask(tree.mask(name), tree.truth[name][:, :, :15])
    return "GeometryError"


def damage_zero_image(tree, name, tools):
    tools.write_series(
        tree.series(name), np.zeros((12, 16, 16), np.int16), uid=f"1.2.826.0.1.3680043.2.1125.{NAMES.index(name) + 1}"
    )
    return "every voxel is 0"


def damage_foreign_label(tree, name, tools):
    label = tree.truth[name].copy()
    label[0, 0, 0] = 7
    tools.write_mask(tree.mask(name), label)
    return "labels [7]"


def damage_empty_mask(tree, name, tools):
    tools.write_mask(tree.mask(name), np.zeros_like(tree.truth[name]))
    return "the mask has no bone"


def damage_missing_mask(tree, name, tools):
    tree.mask(name).unlink()
    tree.mask(name).with_suffix(".raw").unlink()
    return "no mask in the release"


def damage_missing_image_folder(tree, name, tools):
    tree.series(name).rename(tree.series(name).with_name("elsewhere"))
    return "is not in"


def damage_not_in_paths(tree, name, tools):
    path = tree.doc / "oai_mri_paths.txt"
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if not line.startswith(name)))
    return "not in oai_mri_paths.txt"


def damage_two_paths(tree, name, tools):
    with open(tree.doc / "oai_mri_paths.txt", "a") as handle:
        handle.write(f"{name}: 0.C.2/{NAMES[1]}/20050101/other\n")
    return "names 2 images for it"


def damage_two_masks(tree, name, tools):
    tools.write_mask(tree.masks / f"{name}.segmentation_masks_copy.mhd", tree.truth[name])
    return "two masks"


def damage_classification_mask(tree, name, tools):
    label = np.choose(tree.truth[name], [0, 1, 0, 2, 0]).astype(np.uint8)
    tools.write_mask(tree.mask(name), label)
    return "classification study"


DAMAGES = [value for key, value in sorted(globals().items()) if key.startswith("damage_")]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__.removeprefix("damage_"))
def test_damaged_case_is_named_and_the_others_go_on_and_mending_completes(
    tree, whole_tree, raw, tools, damage, tmp_path
):
    name = NAMES[4]  # neither first, middle nor last, whose masks are looked at beforehand
    expected = damage(tree, name, tools)
    assert convert(tree) == 1
    assert list(failed(raw)) == [name]
    assert expected in failed(raw)[name]
    others = [other for other in NAMES if other != name]
    description = load(dataset(raw) / "dataset.json")
    assert description["numTraining"] == 5
    assert sorted(path.name for path in (dataset(raw) / "imagesTr").iterdir()) == [f"{n}_0000.nii.gz" for n in others]
    assert sorted(path.name for path in (dataset(raw) / "labelsTr").iterdir()) == [f"{n}.nii.gz" for n in others]
    splits = load(dataset(raw) / "splits_final.json")
    assert all(name not in split[part] for split in splits for part in split)
    before = {key: value for key, value in fingerprint(dataset(raw)).items() if any(n in key for n in others)}

    for folder in (tree.release, tree.oai_root):  # mend it in place
        for path in sorted(folder.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        folder.rmdir()
    whole_tree.copy_to(tmp_path)
    assert convert(tree) == 0
    np.testing.assert_array_equal(label_of(raw, name), tree.truth[name])
    after = fingerprint(dataset(raw))
    assert all(after[key] == value for key, value in before.items())
    mended = load(dataset(raw) / "splits_final.json")
    # a fold that the damaged case alone was to validate was not written
    assert [split["val"] for split in splits] == [
        held_out for split in mended if (held_out := [n for n in split["val"] if n != name])
    ]
    assert load(dataset(raw) / "integrity_report.json")["complete"] is True


def test_second_series_of_another_kind_is_no_trouble(tree, raw, tools):
    tools.write_series(
        tree.series(NAMES[4]),
        tools.knee(1)[0],
        description="SAG_IW_TSE_RIGHT",
        uid="1.2.826.0.1.3680043.2.1125.77",
        first_file=50,
    )
    assert convert(tree) == 0
    np.testing.assert_array_equal(label_of(raw, NAMES[4]), tree.truth[NAMES[4]])


def test_two_subjects_with_one_image_both_fail(tree, raw):
    path = tree.doc / "oai_mri_paths.txt"
    text = path.read_text().replace(f"0.C.2/{NAMES[2]}/20050101/1{NAMES[2]}", f"0.C.2/{NAMES[4]}/20050101/1{NAMES[4]}")
    path.write_text(text)
    assert convert(tree) == 1
    assert set(failed(raw)) == {NAMES[2], NAMES[4]}


def test_case_of_a_fold_list_alone_is_named(tree, raw):
    with open(tree.doc / "2foldCrossValidation-List1.txt", "a") as handle:
        handle.write("9999999\n")
    assert convert(tree) == 1
    assert "not in oai_mri_paths.txt" in failed(raw)["9999999"]


def test_sides_that_disagree_are_noted(tree, raw, tools):
    name = NAMES[0]
    tools.write_series(tree.series(name), tools.knee(0)[0], uid="1.2.826.0.1.3680043.2.1125.1", side="L")
    assert convert(tree) == 0
    case = load(dataset(raw) / "cases.json")[name]
    assert case["laterality"] is None
    assert "the side is unclear" in case["notes"][0]


# ---- bad input: nothing can be done


def refused(tree, capsys, *options: str) -> str:
    assert convert(tree, *options) == 2
    return capsys.readouterr().err


def test_classification_folder_is_refused_by_its_place(tree, raw, capsys):
    (tree.release / "segmentation").rename(tree.release / "classification")
    assert "classification study" in refused(tree, capsys)
    arguments = ["convert", "oai-zib", str(tree.release / "classification"), "--oai-root", str(tree.oai_root)]
    assert main([*arguments, "-d", "101"]) == 2
    assert not list(raw.iterdir())


def test_classification_masks_are_refused_by_their_labels(tree, raw, capsys, tools):
    for name in NAMES:
        label = np.choose(tree.truth[name], [0, 1, 0, 2, 0]).astype(np.uint8)
        tools.write_mask(tree.mask(name), label)
    assert "classification study" in refused(tree, capsys)
    assert not list(raw.iterdir())


def test_segmentation_is_taken_where_both_folders_are(tree, raw, tools):
    for name in NAMES:
        tools.write_mask(
            tree.release / "classification" / "segmentation_masks" / f"{name}.segmentation_masks.mhd",
            (tree.truth[name] > 0).astype(np.uint8),
        )
    assert convert(tree) == 0
    np.testing.assert_array_equal(label_of(raw, NAMES[0]), tree.truth[NAMES[0]])


def test_folder_with_another_data_set_is_refused(whole_tree, tree, raw, capsys):
    assert convert(whole_tree) == 0
    before = fingerprint(dataset(raw))
    assert "made with oai_root" in refused(tree, capsys)
    assert "already has Dataset101_KneeOAIZIB" in refused(whole_tree, capsys, "--name", "Other")
    assert "made with flip = 'auto'; now it is 'zy'" in refused(whole_tree, capsys, "--flip", "zy")
    assert fingerprint(dataset(raw)) == before


def test_folder_of_someone_else_is_refused(whole_tree, raw, capsys):
    (dataset(raw) / "imagesTr").mkdir(parents=True)
    (dataset(raw) / "imagesTr" / "precious_0000.nii.gz").write_bytes(b"1")
    assert "did not make" in refused(whole_tree, capsys)
    assert (dataset(raw) / "imagesTr" / "precious_0000.nii.gz").read_bytes() == b"1"


def test_files_of_someone_else_among_ours_are_refused_and_kept(whole_tree, raw, capsys):
    convert(whole_tree)
    (dataset(raw) / "imagesTr" / "precious_0000.nii.gz").write_bytes(b"1")
    assert "of no case of this release" in refused(whole_tree, capsys)
    assert (dataset(raw) / "imagesTr" / "precious_0000.nii.gz").read_bytes() == b"1"


def test_nnunet_variable_unset(whole_tree, monkeypatch, capsys):
    monkeypatch.delenv("nnUNet_raw", raising=False)
    assert "export nnUNet_raw=" in refused(whole_tree, capsys)


def test_missing_folders_and_lists(tree, raw, capsys, tmp_path):
    assert "was unpacked" in refused_release(tree, tmp_path, capsys)
    (tree.doc / "2foldCrossValidation-List2.txt").unlink()
    assert "List2.txt does not exist" in refused(tree, capsys, "--two-fold")
    assert "does not exist" in refused(tree, capsys, "--test-list", str(tmp_path / "none.txt"))
    (tree.doc / "oai_mri_paths.txt").write_text("9000001 0.C.2/x\n")
    assert "line 1" in refused(tree, capsys)
    (tree.doc / "oai_mri_paths.txt").unlink()
    assert "oai_mri_paths.txt does not exist" in refused(tree, capsys)


def refused_release(tree, tmp_path, capsys) -> str:
    (tmp_path / "empty").mkdir()
    arguments = ["convert", "oai-zib", str(tmp_path / "empty"), "--oai-root", str(tree.oai_root), "-d", "101"]
    assert main(arguments) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (NAMES[::2] + NAMES[:1], NAMES[1::2], "twice"),
        (NAMES[::2] + NAMES[1:2], NAMES[1::2], "in both fold lists"),
        (NAMES[::2], NAMES[3::2], "in neither"),
    ],
)
def test_bad_fold_lists(tree, raw, capsys, first, second, message):
    for number, names in ((1, first), (2, second)):
        (tree.doc / f"2foldCrossValidation-List{number}.txt").write_text("\n".join(names))
    assert message in refused(tree, capsys, "--two-fold")


def test_unknown_case_in_test_list(tree, raw, capsys, tmp_path):
    (tmp_path / "test.txt").write_text("1234567\n")
    assert "1234567" in refused(tree, capsys, "--test-list", str(tmp_path / "test.txt"))


# ---- interrupted


def test_disk_full_stops_the_run_and_leaves_whole_cases_only(whole_tree, raw, monkeypatch, capsys):
    from nnunet_anomaly.dataset_conversion import writer

    genuine, written = files.write_image, []

    def write_until_full(image: sitk.Image, path: Path) -> None:
        if len(written) == 5:  # image and label of two cases, image of the third
            with files.written_whole(path) as temporary:
                temporary.write_bytes(b"a part of it")
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        written.append(path)
        genuine(image, path)

    monkeypatch.setattr(writer, "write_image", write_until_full)
    assert convert(whole_tree) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert len(written) == 5  # it did not go on with the other cases
    left = sorted(path.name for path in (dataset(raw) / "imagesTr").iterdir())
    assert left == [f"{name}_0000.nii.gz" for name in NAMES[:2]]
    assert sorted(path.name for path in (dataset(raw) / "labelsTr").iterdir()) == [f"{n}.nii.gz" for n in NAMES[:2]]
    assert not (dataset(raw) / "dataset.json").exists()

    monkeypatch.setattr(writer, "write_image", genuine)
    assert convert(whole_tree) == 0
    assert "2 kept from before" in capsys.readouterr().out


def test_what_a_kill_leaves_is_replaced(whole_tree, raw):
    assert convert(whole_tree) == 0
    whole = fingerprint(dataset(raw))
    (dataset(raw) / "conversion" / f"case_{NAMES[2]}.json").unlink()  # killed before the record was written
    (dataset(raw) / "imagesTr" / f"{NAMES[2]}_0000.nii.gz").write_bytes(b"a part of it")
    (dataset(raw) / "imagesTr" / ".partial_abc.nii.gz").write_bytes(b"a part of it")
    (dataset(raw) / "labelsTr" / f"{NAMES[5]}.nii.gz").unlink()
    assert convert(whole_tree) == 0
    assert fingerprint(dataset(raw)) == whole


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_for_real_and_run_again_gives_the_same_bytes(tools, tmp_path, monkeypatch, processes):
    names = [str(9000001 + index) for index in range(8)]
    tree = tools.make_tree(tmp_path / "oai", names, shape=(24, 48, 48))
    (tmp_path / "killed").mkdir()
    (tmp_path / "undisturbed").mkdir()
    folder = tmp_path / "killed" / "Dataset101_KneeOAIZIB"
    command = [sys.executable, "-m", "nnunet_anomaly.cli.main", "convert", "oai-zib", str(tree.release), "-d", "101"]
    process = subprocess.Popen(
        [*command, "--oai-root", str(tree.oai_root), "-np", str(processes)],
        env={**os.environ, "nnUNet_raw": str(tmp_path / "killed")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while len(list(folder.glob("conversion/case_*.json"))) < 2 and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (folder / "dataset.json").exists()
    finished = sorted(folder.glob("conversion/case_*.json"))
    assert 2 <= len(finished) < len(names)
    kept = {path: path.stat().st_mtime_ns for path in finished}

    for raw in ("killed", "undisturbed"):
        monkeypatch.setenv("nnUNet_raw", str(tmp_path / raw))
        assert convert(tree) == 0
    assert {path: path.stat().st_mtime_ns for path in finished} == kept  # not converted again
    assert fingerprint(folder) == fingerprint(tmp_path / "undisturbed" / "Dataset101_KneeOAIZIB")


# ---- the knee phantom, which another room makes from the same page of facts


def test_phantom_release_comes_out_as_its_truth(tmp_path, raw):
    folder = tmp_path / "phantom"
    options = ["--cases", "3", "--seed", "1", "--lesions", "severe", "--grid", "24", "48", "48"]
    assert main(["phantom", "knee", *options, "-o", str(folder)]) == 0
    arguments = ["convert", "oai-zib", str(folder / "OAI-ZIB"), "--oai-root", str(folder / "oai"), "-d", "101"]
    assert main([*arguments, "-np", "1", "--two-fold"]) == 0
    truths = sorted((folder / "truth" / "labels").glob("*.nii.gz"))
    assert len(truths) == 3
    for path in truths:
        truth = sitk.ReadImage(str(path))
        label = sitk.ReadImage(str(dataset(raw) / "labelsTr" / path.name))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(label), sitk.GetArrayFromImage(truth))
        np.testing.assert_allclose(label.GetOrigin(), truth.GetOrigin(), atol=1e-3)
        np.testing.assert_allclose(label.GetDirection(), truth.GetDirection(), atol=1e-5)
    assert len(load(dataset(raw) / "splits_final.json")) == 2
