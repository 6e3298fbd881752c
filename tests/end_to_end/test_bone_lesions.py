"""Qin's chain by console commands: inpainting and bone networks, then images to masks and tables in one command."""

import csv
import json

import numpy as np
import pytest
import SimpleITK as sitk

PLANS = "small_lama"
LAMA, BONE = "nnUNetTrainerLaMa_1epoch", "nnUNetTrainerUNetPlusPlus_1epoch"
SMALL = ("features=4", "blocks=1", "downsamplings=2", "discriminator_features=4")


@pytest.fixture(scope="module")
def trained(planned):
    """The inpainting network of fold 0, and a bone network, hardly trained."""
    sets = [word for text in SMALL for word in ("--set", f"lama.{text}")]
    planned.run("nnunet-anomaly", "plan", "-d", "101", "-p", "nnUNetAnomalyTinyPlans", *sets, "--save-as", PLANS)
    planned.train(101, "2d_inpainting", 0, LAMA, plans=PLANS, steps=60)
    planned.train(101, "2d", "all", BONE, steps=60)
    return planned


@pytest.fixture
def images(tmp_path, write_tiny_image):
    """Three images that no network has seen, the third with a bright ball in the bone, and their label maps."""
    folder = tmp_path / "images"
    for index in (30, 31, 32):
        array = write_tiny_image(folder / f"new_{index}_0000.nii.gz", index)
        image = sitk.ReadImage(str(folder / f"new_{index}_0000.nii.gz"))
        bone = (array < 70).astype(np.uint8)
        if index == 32:
            array[7:9, 10:14, 10:14] = 200
            lesion = sitk.GetImageFromArray(array)
            lesion.CopyInformation(image)
            sitk.WriteImage(lesion, str(folder / "new_32_0000.nii.gz"))
            bone[7:9, 10:14, 10:14] = 0  # as a network that takes the lesion for something else
        labels = sitk.GetImageFromArray(bone)
        labels.CopyInformation(image)
        (tmp_path / "bones").mkdir(exist_ok=True)
        sitk.WriteImage(labels, str(tmp_path / "bones" / f"new_{index}.nii.gz"))
    return folder


def predict(workspace, images, output, *more, expect=0):
    command = ("nnunet-anomaly", "predict", "-d", "101", "-tr", LAMA, "-p", PLANS, "-i", str(images), "-o", str(output))
    return workspace.run(*command, "-device", "cpu", "-np", "1", *more, expect=expect)


def rows_of(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_from_images_to_masks_and_tables(trained, images, tmp_path):
    output = tmp_path / "found"
    bones = ("--bones", str(tmp_path / "bones"))
    result = predict(trained, images, output, *bones, "--side", "left", "--set", "bml.minimum_mm3=0")
    assert "3 done, 0 were there already, 0 failed" in result.stdout
    for case in ("new_30", "new_31", "new_32"):
        reference = sitk.ReadImage(str(images / f"{case}_0000.nii.gz"))
        mask = sitk.ReadImage(str(output / "lesions" / f"{case}.nii.gz"))
        assert mask.GetSize() == reference.GetSize() and mask.GetOrigin() == reference.GetOrigin()
        for path in (f"reconstructions/{case}_0000.nii.gz", f"bones/{case}.nii.gz"):
            assert (output / path).is_file()
    bone = sitk.GetArrayFromImage(sitk.ReadImage(str(output / "bones/new_32.nii.gz")))
    assert bone[7:9, 10:14, 10:14].all(), "what the lesion left out is closed and filled"
    found = sitk.GetArrayFromImage(sitk.ReadImage(str(output / "lesions/new_32.nii.gz")))
    assert found[7:9, 10:14, 10:14].any(), "brighter than anything that is inpainted"
    cases = {row["case"]: row for row in rows_of(output / "cases.csv")}
    assert list(cases) == ["new_30", "new_31", "new_32"] and int(cases["new_32"]["lesions"]) >= 1
    assert {row["side"] for row in cases.values()} == {"left"}
    assert any(row["case"] == "new_32" for row in rows_of(output / "lesions.csv"))

    again = predict(trained, images, output, *bones, "--side", "left", "--set", "bml.minimum_mm3=0")
    assert "0 done, 3 were there already, 0 failed" in again.stdout


def test_bones_are_predicted_and_a_case_that_fails_is_named(trained, images, tmp_path):
    model = f"{BONE}__nnUNetAnomalyTinyPlans__2d"
    (images / "new_31_0000.nii.gz").write_bytes(b"no image")
    output = tmp_path / "found"
    result = predict(trained, images, output, "--bones", model, "--labels", "1", "2", expect=1)
    assert "new_31" in result.stderr and "The side of the knees is not known" in result.stdout
    assert (output / "label_maps" / "new_30.nii.gz").is_file()
    done = {row["case"] for row in rows_of(output / "cases.csv")}
    assert "new_31" not in done and done <= {"new_30", "new_32"}
    stamp = (output / "label_maps" / "new_30.nii.gz").stat().st_mtime_ns
    predict(trained, images, output, "--bones", model, "--labels", "1", "2", expect=1)
    assert (output / "label_maps" / "new_30.nii.gz").stat().st_mtime_ns == stamp


def test_what_is_missing_is_said_before_the_work_starts(trained, images, tmp_path):
    output = tmp_path / "found"
    nothing = predict(trained, images, output, "--bones", "no_such_model", expect=2)
    assert "no_such_model" in nothing.stderr
    setting = predict(trained, images, output, "--bones", str(tmp_path / "bones"), "--set", "focal.beta=1", expect=2)
    assert "only settings of the group bml" in setting.stderr
    (tmp_path / "empty").mkdir()
    empty = predict(trained, tmp_path / "empty", output, "--bones", str(tmp_path / "bones"), expect=2)
    assert "holds no image named" in empty.stderr
    (tmp_path / "bones" / "new_30.nii.gz").unlink()
    without = predict(trained, images, output, "--bones", str(tmp_path / "bones"), expect=1)
    assert "no label map of new_30" in without.stderr
    assert {row["case"] for row in rows_of(output / "cases.csv")} == {"new_31", "new_32"}
    record = json.loads((output / "lesions" / "lesions.json").read_text(encoding="utf-8"))
    assert record["cases"] == 2
