"""The main job by console commands on a tiny dataset: what the README shows, and what happens when it goes wrong."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_anomaly.errors import MissingCheckpointError
from nnunet_anomaly.files import load_json

PLANS = "nnUNetAnomalyTinyPlans"
G, A, S = "nnUNetTrainerInpainting_1epoch", "nnUNetTrainerInpaintingMimic_1epoch", "nnUNetTrainerAnomalyAware_1epoch"
WHOLE, PLAIN = "nnUNetTrainerAnomalyAwareEndToEnd_1epoch", "nnUNetTrainerSeeded_1epoch"


def model(workspace, trainer, configuration="2d_inpainting", dataset="Dataset101_Tiny"):
    return workspace.root / "nnUNet_results" / dataset / f"{trainer}__{PLANS}__{configuration}"


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def error_maps(*more, trainer=A):
    return [
        "nnunet-anomaly", "error-maps", "-d", "101", "-tr", trainer, "-p", PLANS, "-c", "2d_inpainting",
        "-device", "cpu", "-np", "1", *more,
    ]  # fmt: skip


def kill_once_there(workspace, command: list[str], path: Path) -> None:
    """Start a console command and kill it (not its workers: they must not live on) when a file has appeared."""
    program = str(Path(sys.executable).parent / command[0])
    process = subprocess.Popen(
        [program, *command[1:]],
        env={**workspace.environment, "nnUNet_n_proc_DA": "0"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 240
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert path.exists()


@pytest.fixture(scope="module")
def trained(planned):
    """G and A of both folds, in 2-D."""
    for fold in (0, 1):
        planned.train(101, "2d_inpainting", fold, G, steps=60)
        planned.train(101, "2d_inpainting", fold, A, steps=60)
    return planned


@pytest.fixture(scope="module")
def derived(trained):
    """The dataset with out-of-fold error maps, planned."""
    (trained.root / "nnUNet_raw" / "Dataset101_Tiny" / "imagesTs").mkdir(exist_ok=True)  # empty ones are no error
    trained.run(*error_maps("-o", "201"), here=False)
    command = ["nnUNetv2_plan_and_preprocess", "-d", "201", "-pl", "nnUNetPlannerAnomalyTiny", "-c", "2d"]
    trained.run(*command, "-np", "1", "-npfp", "1", "--verify_dataset_integrity")
    return trained


@pytest.fixture(scope="module")
def new_images(tmp_path_factory, write_tiny_image):
    """Two images that no network has seen."""
    folder = tmp_path_factory.mktemp("new_images")
    for index in (20, 21):
        write_tiny_image(folder / f"new_{index}_0000.nii.gz", index)
    return folder


def test_a_missing_g_is_an_error_that_names_the_command(planned):
    result = planned.run(
        "nnUNetv2_train", "101", "2d_inpainting", "0", "-tr", "nnUNetTrainerInpaintingMimic_3epochs", "-p", PLANS,
        "-device", "cpu", expect=None, here=True, nnUNet_n_proc_DA="0",
    )  # fmt: skip
    assert MissingCheckpointError.__name__ in result.stderr
    assert "nnUNetv2_train Dataset101_Tiny 2d_inpainting 0 -tr nnUNetTrainerInpainting_3epochs" in result.stderr


def test_validation_again_gives_the_same_maps(trained):
    folder = model(trained, A) / "fold_0" / "validation"
    before = digests(folder)
    shutil.rmtree(folder)
    trained.train(101, "2d_inpainting", 0, A, "--val")
    assert digests(folder) == before


def test_the_best_checkpoint_is_validated_where_asked_for(trained):
    folder = model(trained, A) / "fold_0" / "validation"
    before = digests(folder)
    trained.train(101, "2d_inpainting", 0, A, "--val", "--val_best")
    assert load_json(folder / "error_maps.json")["checkpoint"] == "checkpoint_best.pth"
    result = trained.run(*error_maps("-o", "Dataset299_Never"), expect=2)
    assert "are by checkpoint_best.pth, not checkpoint_final.pth" in result.stderr
    trained.train(101, "2d_inpainting", 0, A, "--val")
    assert digests(folder) == before


def test_a_killed_training_goes_on_with_c(planned):
    trainer = "nnUNetTrainerInpainting_2epochs"
    command = ["nnUNetv2_train", "101", "2d_inpainting", "0", "-tr", trainer, "-p", PLANS, "-device", "cpu"]
    folder = model(planned, trainer) / "fold_0"
    kill_once_there(planned, command, folder / "checkpoint_best.pth")
    assert not (folder / "checkpoint_final.pth").exists()
    output = planned.train(101, "2d_inpainting", 0, trainer, "--c")
    assert "Epoch 1" in output and "Epoch 0" not in output
    assert (folder / "checkpoint_final.pth").is_file()


def test_nnunets_predict_is_refused_for_reconstructions(trained, new_images, tmp_path):
    result = trained.run(
        "nnUNetv2_predict", "-d", "101", "-c", "2d_inpainting", "-f", "0", "-tr", A, "-p", PLANS, "-i", str(new_images),
        "-o", str(tmp_path), "-device", "cpu", expect=None, here=True,
    )  # fmt: skip
    assert f"nnunet-anomaly error-maps -d DATASET -tr {A}" in result.stderr


def test_resuming_a_finished_training_only_validates(trained):
    output = trained.train(101, "2d_inpainting", 0, G, "--c")
    assert "Epoch 0" not in output and "Error maps of 3 held-out cases" in output


def test_the_derived_dataset_is_planned_without_normalising_the_error_map(derived):
    description = load_json(derived.root / "nnUNet_raw" / "Dataset201_TinyErrorMaps" / "dataset.json")
    assert description["channel_names"] == {"0": "MR", "1": "noNorm"}
    plans = load_json(derived.root / "nnUNet_preprocessed" / "Dataset201_TinyErrorMaps" / f"{PLANS}.json")
    assert plans["configurations"]["2d"]["normalization_schemes"] == ["ZScoreNormalization", "NoNormalization"]
    assert not [name for name in plans["configurations"] if name.endswith("_inpainting")]
    assert plans["anomaly"]["roi"]["labels"] == [1]
    splits = [load_json(derived.root / folder / name / "splits_final.json") for folder, name in (
        ("nnUNet_preprocessed", "Dataset101_Tiny"), ("nnUNet_preprocessed", "Dataset201_TinyErrorMaps"))]  # fmt: skip
    assert splits[0] == splits[1]


def test_a_missing_fold_is_refused(trained):
    folder = model(trained, A) / "fold_1"
    hidden = folder.with_name("hidden")
    folder.rename(hidden)
    try:
        result = trained.run(*error_maps("-o", "Dataset299_Never"), expect=2)
    finally:
        hidden.rename(folder)
    assert (
        "Fold 1 is missing" in result.stderr
        and f"nnUNetv2_train Dataset101_Tiny 2d_inpainting 1 -tr {A}" in result.stderr
    )
    assert not (trained.root / "nnUNet_raw" / "Dataset299_Never").exists()


def test_maps_by_the_reference_labels_are_refused(trained):
    result = trained.run(*error_maps("-o", "299", trainer=G), expect=2)
    assert "tell S where the labels are" in result.stderr


def test_another_dataset_in_the_target_is_refused(derived):
    result = derived.run(*error_maps("-o", "101"), expect=2)
    assert "already holds another dataset" in result.stderr


def test_killed_in_the_middle_a_rerun_gives_the_same_bytes(derived, new_images, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    derived.run(*error_maps("-i", str(new_images), "-o", str(whole)))
    kill_once_there(derived, error_maps("-i", str(new_images), "-o", str(killed)), killed / "new_20_0001.nii.gz")
    assert (killed / "error_maps.json").is_file()
    (killed / ".partial_half.nii.gz").write_bytes(b"half")  # what a kill while writing leaves
    derived.run(*error_maps("-i", str(new_images), "-o", str(killed)))
    assert digests(killed) == digests(whole)
    again = derived.run(*error_maps("-i", str(new_images), "-o", str(killed)))
    assert "0 done, 2 were there already, 0 failed" in again.stdout


def test_a_full_disk_stops_the_run_and_a_rerun_gives_the_same_bytes(derived, new_images, tmp_path):
    whole, full = tmp_path / "whole", tmp_path / "full"
    derived.run(*error_maps("-i", str(new_images), "-o", str(whole)))
    program = str(Path(sys.executable).parent / "nnunet-anomaly")
    command = [program, *error_maps("-i", str(new_images), "-o", str(full))[1:]]
    # a limit on the size of files acts as a full disk does, and needs no root
    size = min(path.stat().st_size for path in whole.glob("*_0001.nii.gz"))
    result = subprocess.run(
        command,
        env=derived.environment,
        capture_output=True,
        encoding="utf-8",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2)),
    )
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "What was finished is whole; mend this and run it again" in result.stderr
    assert not list(full.rglob("*_0001.nii.gz")) and not list(full.rglob(".partial_*"))
    derived.run(*error_maps("-i", str(new_images), "-o", str(full)))
    assert digests(full) == digests(whole)


def test_new_images_get_the_mean_reconstruction_of_the_folds(derived, new_images, tmp_path):
    for name, folds in (("both", []), ("0", ["-f", "0"]), ("1", ["-f", "1"])):
        where = ["-i", str(new_images), "-o", str(tmp_path / name), *folds]
        derived.run(*error_maps(*where, "--save-reconstructions", str(tmp_path / name / "reconstructions")))

    def read(name, file="reconstructions/new_20_0000.nii.gz"):
        return sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / name / file)))

    np.testing.assert_allclose(read("both"), (read("0") + read("1")) / 2, atol=1e-5)
    raw = sitk.ReadImage(str(new_images / "new_20_0000.nii.gz"))
    error = sitk.ReadImage(str(tmp_path / "both" / "new_20_0001.nii.gz"))
    assert error.GetSize() == raw.GetSize() and error.GetOrigin() == raw.GetOrigin()
    late = error_maps("-i", str(new_images), "-o", str(tmp_path / "both"))  # reconstructions of finished maps
    before = digests(tmp_path / "both")
    shutil.rmtree(tmp_path / "both" / "reconstructions")
    derived.run(*late, "--save-reconstructions", str(tmp_path / "both" / "reconstructions"))
    assert digests(tmp_path / "both") == before
    refused = derived.run(*error_maps("-i", str(new_images), "-o", str(tmp_path / "0")), expect=2)
    assert "holds error maps of another model, other folds" in refused.stderr


def test_the_images_folder_and_a_folder_with_other_files_are_no_output(derived, new_images, tmp_path):
    before = digests(new_images)
    same = derived.run(*error_maps("-i", str(new_images), "-o", str(new_images)), expect=2)
    assert "-o is the folder of the images" in same.stderr
    assert digests(new_images) == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    other = derived.run(*error_maps("-i", str(new_images), "-o", str(tmp_path / "other")), expect=2)
    assert "holds other files" in other.stderr


def test_networks_trained_again_make_old_maps_stale(derived, new_images, tmp_path):
    derived.run(*error_maps("-i", str(new_images), "-o", str(tmp_path / "maps")))
    checkpoint = model(derived, A) / "fold_0" / "checkpoint_final.pth"
    before = checkpoint.read_bytes()
    again = torch.load(checkpoint, weights_only=False)
    again["network_weights"] = {name: 2 * weights for name, weights in again["network_weights"].items()}
    torch.save(again, checkpoint)
    try:
        stale = derived.run(*error_maps("-i", str(new_images), "-o", str(tmp_path / "maps")), expect=2)
        old_maps = derived.run(*error_maps("-o", "Dataset299_Never"), expect=2)
    finally:
        checkpoint.write_bytes(before)
    assert "trained again since" in stale.stderr
    assert "Fold 0 was trained again since" in old_maps.stderr


def test_an_image_or_mask_that_changed_is_mapped_again(derived, new_images, tmp_path):
    images, masks, out = (tmp_path / name for name in ("images", "masks", "out"))
    shutil.copytree(new_images, images)
    masks.mkdir()
    labels = derived.root / "nnUNet_raw" / "Dataset101_Tiny" / "labelsTr"
    shutil.copy(labels / "case_00.nii.gz", masks / "new_20.nii.gz")
    command = error_maps("-i", str(images), "-o", str(out), "--masks-from", str(masks), trainer=G)
    assert "1 done, 0 were there already, 1 failed" in derived.run(*command, expect=1).stdout
    shutil.copy(labels / "case_01.nii.gz", masks / "new_21.nii.gz")  # the mask that was missing
    assert "1 done, 1 were there already, 0 failed" in derived.run(*command).stdout
    before = (out / "new_20_0001.nii.gz").read_bytes()
    shutil.copy(images / "new_21_0000.nii.gz", images / "new_20_0000.nii.gz")
    assert "1 done, 1 were there already, 0 failed" in derived.run(*command).stdout
    assert (out / "new_20_0001.nii.gz").read_bytes() != before
    shutil.copy(labels / "case_02.nii.gz", masks / "new_21.nii.gz")
    assert "1 done, 1 were there already, 0 failed" in derived.run(*command).stdout


def test_training_cases_as_new_images_are_a_leak(derived, tmp_path):
    images = derived.root / "nnUNet_raw" / "Dataset101_Tiny" / "imagesTr"
    result = derived.run(*error_maps("-i", str(images), "-o", str(tmp_path / "maps")), expect=2)
    assert "case_00" in result.stderr and "--allow-leak" in result.stderr


def test_damaged_images_are_named_and_the_others_go_on(derived, new_images, write_tiny_image, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(new_images, images)
    for name in ("two_0000", "two_0001", "later_0001", "scan"):
        write_tiny_image(images / f"{name}.nii.gz", 22)
    image = nibabel.load(images / "two_0000.nii.gz")  # ITK would read the NaN back as 0
    for name, values in {"nan_0000": np.nan, "zero_0000": 0.0}.items():
        array = np.full(image.shape, values, np.float32)
        nibabel.save(nibabel.Nifti1Image(array, image.affine), images / f"{name}.nii.gz")
    whole = (images / "new_20_0000.nii.gz").read_bytes()
    (images / "cut_0000.nii.gz").write_bytes(whole[: len(whole) // 2])
    result = derived.run(*error_maps("-i", str(images), "-o", str(tmp_path / "maps")), expect=1)
    for case, reason in {
        "nan": "NaN or infinity",
        "zero": "zero everywhere",
        "two": "2 channels",
        "later": "Channel 0 is missing",
        "cut": "cut",
    }.items():
        line = next(line for line in result.stdout.splitlines() if line.startswith(f"FAILED {case}:"))
        assert reason in line
        assert not (tmp_path / "maps" / f"{case}_0001.nii.gz").exists()
    assert (tmp_path / "maps" / "new_21_0001.nii.gz").is_file()
    assert "2 done, 0 were there already, 5 failed" in result.stdout
    assert "names end in no channel number such as _0000: scan.nii.gz" in result.stderr


def test_s_trains_and_stock_nnunet_predicts_with_it(derived, new_images, tmp_path):
    derived.train(201, "2d", 0, S, here=False)
    derived.run(*error_maps("-i", str(new_images), "-o", str(tmp_path / "input")))
    derived.run(
        "nnUNetv2_predict", "-d", "201", "-c", "2d", "-f", "0", "-tr", S, "-p", PLANS, "-i", str(tmp_path / "input"),
        "-o", str(tmp_path / "predicted"), "-device", "cpu", "-npp", "1", "-nps", "1", "--disable_tta",
    )  # fmt: skip
    raw = sitk.ReadImage(str(new_images / "new_20_0000.nii.gz"))
    labels = sitk.ReadImage(str(tmp_path / "predicted" / "new_20.nii.gz"))
    assert labels.GetSize() == raw.GetSize()
    assert set(np.unique(sitk.GetArrayFromImage(labels))) <= {0, 1, 2}
    summary = load_json(model(derived, S, "2d", "Dataset201_TinyErrorMaps") / "fold_0" / "validation" / "summary.json")
    assert summary["foreground_mean"]["Dice"] > 0.5  # it has learnt the tiny knees

    out = tmp_path / "anomalies"
    derived.run("nnunet-anomaly", "anomalies", "-i", str(tmp_path / "input"), "-s", str(tmp_path / "predicted"),
                "-d", "201", "-o", str(out), "-np", "1")  # fmt: skip
    assert (out / "new_20.nii.gz").is_file() and (out / "volumes.csv").is_file()
    assert "robust" in json.dumps(load_json(out / "threshold.json"))


def test_one_folder_holds_a_and_s_and_predicts_raw_images_elsewhere(trained, new_images, new_workspace, tmp_path):
    where = ["-d", "101", "-c", "2d", "-f", "0", "-tr", WHOLE, "-p", PLANS]
    trained.train(101, "2d", 0, WHOLE)
    folder = model(trained, WHOLE, "2d")
    summary = folder / "fold_0" / "validation" / "summary.json"
    dice = load_json(summary)["foreground_mean"]["Dice"]
    assert dice > 0.5  # it has learnt the tiny knees
    summary.unlink()
    trained.train(101, "2d", 0, WHOLE, "--val")
    assert load_json(summary)["foreground_mean"]["Dice"] == dice

    def predict(workspace, output, *more):
        command = ["nnUNetv2_predict", *where, "-i", str(new_images), "-o", str(output), "-device", "cpu"]
        workspace.run(*command, "-npp", "1", "-nps", "1", "--save_probabilities", *more, here=workspace is trained)
        return {path.name: np.load(path)["probabilities"] for path in sorted(output.glob("*.npz"))}

    here = predict(trained, tmp_path / "here", "--disable_tta")
    trained.run("nnUNetv2_export_model_to_zip", *where, "-o", str(tmp_path / "model.zip"))
    elsewhere = new_workspace("elsewhere")
    elsewhere.run("nnUNetv2_install_pretrained_model_from_zip", str(tmp_path / "model.zip"))
    assert [path.name for path in (elsewhere.root / "nnUNet_results" / "Dataset101_Tiny").iterdir()] == [folder.name]
    there = predict(elsewhere, tmp_path / "there", "--disable_tta")
    assert sorted(there) == ["new_20.npz", "new_21.npz"]
    for name, probabilities in here.items():
        assert np.array_equal(there[name], probabilities)
    mirrored = predict(elsewhere, tmp_path / "mirrored")
    assert any(not np.array_equal(mirrored[name], there[name]) for name in there)


def test_two_passes_by_a_plain_model_of_the_same_folds(derived, new_images, tmp_path):
    for fold in (0, 1):
        derived.train(101, "2d", fold, PLAIN, steps=120)
    masks = ("--masks-from", f"{PLAIN}__{PLANS}__2d")
    maps = model(derived, G) / "fold_1" / f"validation_two_pass_{PLAIN}__{PLANS}__2d" / "error_maps"
    command = error_maps("-o", "Dataset202_TwoPasses", *masks, trainer=G)
    kill_once_there(derived, command, maps / "case_01.nii.gz")
    derived.run(*command)
    raw = derived.root / "nnUNet_raw"
    for fold in (0, 1):
        shutil.rmtree(maps.parent.parent.parent / f"fold_{fold}" / maps.parent.name)
    derived.run(*error_maps("-o", "Dataset206_Whole", *masks, "--copy", trainer=G))
    images = raw / "Dataset202_TwoPasses" / "imagesTr"
    assert digests(images) == digests(raw / "Dataset206_Whole" / "imagesTr")
    assert sorted(path.name for path in images.glob("*_0001.nii.gz")) == [f"case_0{i}_0001.nii.gz" for i in range(6)]
    derived.run(*error_maps("-i", str(new_images), "-o", str(tmp_path / "maps"), *masks, trainer=G))
    assert (tmp_path / "maps" / "new_21_0001.nii.gz").is_file()
    without = derived.run(*error_maps("-i", str(new_images), "-o", str(tmp_path / "none"), trainer=G), expect=1)
    assert "give --masks-from" in without.stdout
    unused = derived.run(*error_maps("-i", str(new_images), "-o", str(tmp_path / "unused"), *masks), expect=2)
    assert "takes no mask" in unused.stderr
    labels = str(derived.root / "nnUNet_raw" / "Dataset101_Tiny" / "labelsTr")
    reference = derived.run(*error_maps("-o", "204", "--masks-from", labels, trainer=G), expect=2)
    assert "would leak into the error maps" in reference.stderr
    held_out = model(derived, PLAIN, "2d") / "fold_1" / "validation" / "case_00.nii.gz"
    held_out.unlink()
    result = derived.run(*error_maps("-o", "Dataset203_Leak", *masks, trainer=G), expect=2)
    assert "exactly the held-out cases of fold 1" in result.stderr


def test_settings_are_changed_by_the_plan_verb(planned):
    folder = planned.root / "nnUNet_preprocessed" / "Dataset101_Tiny"
    command = ["nnunet-anomaly", "plan", "-d", "101", "-p", PLANS]
    planned.run(*command, "--set", "focal.beta=50", "--set", "seed=7", "--save-as", "changed")
    plans = load_json(folder / "changed.json")
    assert plans["anomaly"]["focal"]["beta"] == 50 and plans["anomaly"]["seed"] == 7
    assert plans["plans_name"] == "changed"
    original = load_json(folder / f"{PLANS}.json")
    assert original["anomaly"]["focal"]["beta"] == 99
    assert plans["configurations"]["2d"]["data_identifier"] == original["configurations"]["2d"]["data_identifier"]

    planned.run(*command, "--preset", "paper", "--save-as", "paper")
    paper = load_json(folder / "paper.json")
    assert paper["anomaly"]["focal"]["alpha"] == 10 and paper["anomaly"]["roi"]["labels"] == [1]
    assert paper["configurations"]["3d_inpainting"]["batch_size"] == 1

    for wrong, message in {
        "roi.labels=[9]": "the dataset's labels are [1, 2]",
        "preset=paper": "give --preset instead",
        "error_map.clip_sd=3": "is part of the preprocessed data",
    }.items():
        assert message in planned.run(*command, "--set", wrong, expect=2).stderr
    taken = planned.run(*command, "--set", "seed=8", "--save-as", "changed", expect=2)
    assert "already exists and differs" in taken.stderr

    typo = planned.run(*command, "--set", "focal.bta=50", expect=2)
    assert "did you mean 'focal.beta'?" in typo.stderr
    wrong = planned.run(*command, "--set", "focal.beta=high", expect=2)
    assert "must be a number, not 'high'" in wrong.stderr
    missing = planned.run("nnunet-anomaly", "plan", "-d", "101", "-p", "nnUNetPlans", expect=2)
    assert "nnUNetPlans.json does not exist" in missing.stderr

    del original["anomaly"]
    original["plans_name"] = "stock"
    (folder / "stock.json").write_text(json.dumps(original))
    without = planned.run("nnunet-anomaly", "plan", "-d", "101", "-p", "stock", expect=2)
    assert "-pl nnUNetPlannerAnomaly" in without.stderr
    planned.run("nnunet-anomaly", "plan", "-d", "101", "-p", "stock", "--add-block")
    assert load_json(folder / "stock.json")["anomaly"]["preset"] == "robust"


def test_an_unset_variable_is_named(planned):
    for variable, command in (
        ("nnUNet_preprocessed", ["plan", "-d", "101"]),
        ("nnUNet_raw", error_maps("-o", "201")[1:]),
    ):
        result = planned.run("nnunet-anomaly", *command, expect=2, **{variable: ""})
        assert f"The environment variable {variable} is not set" in result.stderr
