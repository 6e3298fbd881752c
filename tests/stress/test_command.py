"""``nnunet-anomaly stress`` from end to end: what it writes, what it repeats, what becomes of cases that fail."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage

from nnunet_anomaly.files import load_json
from nnunet_anomaly.phantoms.stress_corruptions import CORRUPTIONS
from nnunet_anomaly.workflow.stress_predictor import Predictor, nnunet_predictor

PLANS = "nnUNetAnomalyTinyPlans"
PLAIN, AWARE, WHOLE = "nnUNetTrainerSeeded", "nnUNetTrainerAnomalyAware", "nnUNetTrainerAnomalyAwareEndToEnd"
DATA = "Dataset101_Tiny"
AWARE_MODEL = f"Dataset201_TinyErrorMaps/{AWARE}__{PLANS}__2d"
TWO_PASS_MODEL = f"Dataset202_TinyTwoPasses/{AWARE}__{PLANS}__2d"
NOISE = ("--corruptions", "noise", "--severities", "severe")
STRUCTURES = {"bone": 1, "cartilage": 2}


def rows_of(output: Path) -> list[dict[str, str]]:
    with open(output / "cases.csv", encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def dice_of(rows, **where: str) -> dict[tuple[str, str], float]:
    """Dice by case and structure, of rows with these values."""
    chosen = [row for row in rows if all(row[key] == value for key, value in where.items())]
    assert len({(row["case"], row["structure"]) for row in chosen}) == len(chosen)
    return {(row["case"], row["structure"]): float(row["dsc"]) for row in chosen}


def labels_of(models, case: str) -> np.ndarray:
    path = models.root / "nnUNet_raw" / DATA / "labelsTr" / f"{case}.nii.gz"
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def predicted_by_nnunet(models, monkeypatch, folds, cases, output) -> dict[str, np.ndarray]:
    """Label maps of uncorrupted cases by nnU-Net's predictor of the plain model, from files to files."""
    for name, value in models.workspace.environment.items():
        monkeypatch.setenv(name, value)
    folder = models.root / "nnUNet_results" / DATA / f"{PLAIN}__{PLANS}__2d"
    predictor = nnunet_predictor(folder, folds, "checkpoint_final.pth", torch.device("cpu"), True)
    images = models.root / "nnUNet_raw" / DATA / "imagesTr"
    files = [[str(images / f"{case}_0000.nii.gz")] for case in cases]
    output.mkdir()
    predictor.predict_from_files_sequential(files, [str(output / case) for case in cases], save_probabilities=False)
    return {case: sitk.GetArrayFromImage(sitk.ReadImage(str(output / f"{case}.nii.gz"))) for case in cases}


def dice(reference: np.ndarray, prediction: np.ndarray, label: int) -> float:
    one, other = reference == label, prediction == label
    return 2 * (one & other).sum() / (one.sum() + other.sum())


@pytest.fixture
def predictions(monkeypatch) -> Callable[[], int]:
    """How many images were predicted since it was last asked."""
    count, predict = [0], Predictor.predict

    def counted(self, *args):
        count[0] += 1
        return predict(self, *args)

    def since() -> int:
        number, count[0] = count[0], 0
        return number

    monkeypatch.setattr(Predictor, "predict", counted)
    return since


# -- what it writes ---------------------------------------------------------------------------------------------------


def test_all_models_and_corruptions_in_one_report(models, stress, tmp_path, predictions):
    out = tmp_path / "out"
    tr = (PLAIN, AWARE_MODEL, TWO_PASS_MODEL, f"{WHOLE}__{PLANS}__2d")
    names = ("plain", "aware", "two_passes", "end_to_end")
    more = ("--cases", "1", "--severities", "mild", "--cleaned", "--worst", "2", "--names", *names)
    result = stress(models, out, *more, tr=tr, figures=True)
    grades = 1 + len(CORRUPTIONS)
    assert predictions() == 4 * grades + 2 * 4  # those of the pictures again
    assert "1 cases (1 by fold 0), 9 versions of each, 4 models: 36 predictions." in result.stderr
    rows = rows_of(out)
    assert {row["model"] for row in rows} == {*names, *(f"{name}, cleaned" for name in names)}
    assert len(rows) == 2 * 4 * grades * len(STRUCTURES)
    assert {(row["corruption"], row["severity"]) for row in rows} == {
        ("none", "0.0"), *((name, "0.25") for name in CORRUPTIONS),
    }  # fmt: skip
    records = [f"cases/{name}/case_03/bright_lesion_0.25.json" for name in names]
    summary = load_json(out / "summary.json")
    assert summary["settings"]["cases"] == {"case_03": "0"}
    maps = [model["error_maps"] for model in summary["settings"]["models"] if not model["cleaned"]]
    a, g = (f"{DATA}/nnUNetTrainerInpainting{name}__{PLANS}__2d_inpainting" for name in ("Mimic", ""))
    assert maps == [None, a, f"{g}, erasing what {PLAIN}__{PLANS}__2d finds", "made inside the network"]
    for name in ("report.html", "curves.csv", "comparison.csv", *records):
        assert (out / name).is_file(), name
    assert len(list((out / "pictures").glob("*_0.25_case_03.png"))) == 2
    captions = re.findall("<figcaption>(.*Dice of .*?)</figcaption>", (out / "report.html").read_text())
    assert len(captions) == 2 and "cleaned: " not in str(captions)  # no picture shows what is cleaned
    record = load_json(out / records[0])
    assert record["corruption"]["corruption"] == "bright_lesion" and record["corruption"]["anomaly_voxels"] > 0
    assert load_json(out / "cases/plain/case_03/none_0.json")["corruption"]["corruption"] == "none"
    assert "two_passes against plain" in result.stdout and f"Look at {out / 'report.html'}" in result.stdout


def test_uncorrupted_cases_are_predicted_by_the_fold_that_held_them_out(models, stress, tmp_path, monkeypatch):
    stress(models, tmp_path / "out", *NOISE, "--cleaned", folds=("1", "0"))
    rows = rows_of(tmp_path / "out")
    uncorrupted = dice_of(rows, model="Seeded", corruption="none")
    cleaned = dice_of(rows, model="Seeded, cleaned", corruption="none")
    for fold, cases in ((0, ["case_03", "case_04", "case_05"]), (1, ["case_00", "case_01", "case_02"])):
        label_maps = predicted_by_nnunet(models, monkeypatch, [fold], cases, tmp_path / f"fold_{fold}")
        for case, label_map in label_maps.items():
            assert {row["fold"] for row in rows if row["case"] == case} == {str(fold)}
            for structure, label in STRUCTURES.items():
                reference = labels_of(models, case)
                expected = dice(reference, label_map, label)
                assert uncorrupted[case, structure] == pytest.approx(expected, abs=1e-12)
                numbers, parts = ndimage.label(label_map == label, np.ones((3, 3, 3)))
                sizes = ndimage.sum_labels(np.ones(numbers.shape), numbers, range(1, parts + 1))
                kept = np.isin(numbers, 1 + np.flatnonzero(sizes >= 0.2 * sizes.max(initial=0)))
                expected = dice(reference == label, kept, 1)
                assert cleaned[case, structure] == pytest.approx(expected, abs=1e-12)
    assert len(uncorrupted) == 12
    assert uncorrupted != dice_of(rows, model="Seeded", corruption="noise")
    assert uncorrupted != cleaned


def test_new_cases_are_predicted_by_the_ensemble(models, stress, tmp_path, monkeypatch):
    raw = models.root / "nnUNet_raw" / DATA
    for kind, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (tmp_path / kind).mkdir()
        for case in ("case_00", "case_03"):
            shutil.copy(raw / kind / f"{case}{ending}", tmp_path / kind / f"new_{case}{ending}")
    where = ("-i", str(tmp_path / "imagesTr"), "-l", str(tmp_path / "labelsTr"))
    stress(models, tmp_path / "out", *where, *NOISE, folds=("0", "1"))
    rows = rows_of(tmp_path / "out")
    assert {row["fold"] for row in rows} == {"0+1"}
    label_maps = predicted_by_nnunet(models, monkeypatch, [0, 1], ["case_00", "case_03"], tmp_path / "by_nnunet")
    for (case, structure), value in dice_of(rows, corruption="none").items():
        case = case.removeprefix("new_")
        assert value == pytest.approx(dice(labels_of(models, case), label_maps[case], STRUCTURES[structure]), abs=1e-12)


def test_a_seed_gives_the_same_figures_and_another_one_others(models, stress, tmp_path):
    more = ("--corruptions", "noise", "bright_lesion", "--severities", "1", "--cases", "case_04")
    for name, seed in (("one", "5"), ("same", "5"), ("other", "6")):
        stress(models, tmp_path / name, *more, "--seed", seed)
    one, same, other = (rows_of(tmp_path / name) for name in ("one", "same", "other"))
    assert one == same and len(one) == 6
    for corruption in ("noise", "bright_lesion"):
        assert dice_of(one, corruption=corruption) != dice_of(other, corruption=corruption)
    assert dice_of(one, corruption="none") == dice_of(other, corruption="none")


def test_cases_region_and_size_are_those_asked_for(models, stress, tmp_path):
    def record_of(name: str, *more: str):
        what = ("--corruptions", "bright_lesion", "noise", "--severities", "1", "--cases", "case_05")
        stress(models, tmp_path / name, *what, *more)
        assert {row["case"] for row in rows_of(tmp_path / name)} == {"case_05"}
        return load_json(tmp_path / name / "cases" / "Seeded" / "case_05" / "bright_lesion_1.json")["corruption"]

    usual = record_of("usual")  # roi_labels of dataset.json
    assert list(usual["anomaly_voxels_by_label"]) == ["1"]
    region = record_of("region", "--region", "cartilage")
    assert list(region["anomaly_voxels_by_label"]) == ["2"]
    size = record_of("size", "--size-mm", "3.5")
    assert size["radius_mm"] == 3.5 != usual["radius_mm"]


def test_a_number_of_cases_is_spread_over_all(models, stress, tmp_path):
    stress(models, tmp_path, *NOISE, "--cases", "2", folds=("0", "1"))
    assert sorted({row["case"] for row in rows_of(tmp_path)}) == ["case_00", "case_03"]


def test_an_exported_model_is_the_model(models, stress, tmp_path, monkeypatch, predictions):
    from nnunetv2.model_sharing.model_export import export_pretrained_model

    for name, value in models.workspace.environment.items():
        monkeypatch.setenv(name, value)
    path = tmp_path / "exported.zip"
    export_pretrained_model(DATA, str(path), ("2d",), WHOLE, PLANS, folds=(0,))
    tr = (f"{WHOLE}__{PLANS}__2d", str(path))
    more = (*NOISE, "--cases", "case_03", "--names", "here", "exported")
    stress(models, tmp_path / "out", *more, tr=tr)
    rows = rows_of(tmp_path / "out")
    for corruption in ("none", "noise"):
        here, exported = (dice_of(rows, model=model, corruption=corruption) for model in ("here", "exported"))
        assert here == exported and len(here) == 2
    assert predictions() == 4
    stress(models, tmp_path / "out", *more, tr=tr)
    assert predictions() == 0
    (folder,) = (tmp_path / "out" / "unpacked").iterdir()
    assert (folder / DATA / f"{WHOLE}__{PLANS}__2d" / "fold_0" / "checkpoint_final.pth").is_file()


# -- what it repeats --------------------------------------------------------------------------------------------------


def touch(path: Path) -> None:
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1))


def test_a_rerun_predicts_only_what_changed(changeable, stress, tmp_path, predictions):
    out = tmp_path / "out"
    raw, model = changeable.root / "nnUNet_raw" / DATA, changeable.root / "nnUNet_results" / DATA

    def again(*more: str) -> int:
        what = ("--corruptions", "noise", "bright_lesion", "--severities", "1", "--cases", "case_03", "case_04")
        stress(changeable, out, *what, "--worst", "1", *more)
        return predictions()

    assert again() == 2 * 3 + 1  # two cases, as they are and twice corrupted; the picture
    before = (out / "cases.csv").read_bytes()
    assert again() == 0
    assert (out / "cases.csv").read_bytes() == before
    assert again("--seed", "1") == 2 * 2 + 1  # uncorrupted images depend on no seed
    assert again("--seed", "1", "--size-mm", "4") in (2, 3)  # noise has no size; another case may be the worst
    assert again("--seed", "1", "--size-mm", "4") == 0
    assert again("--severities", "0.5", "1") >= 2 * 2 + 2 * 2
    assert again() in (0, 1)
    assert (out / "cases.csv").read_bytes() == before

    touch(raw / "labelsTr" / "case_04.nii.gz")
    assert again() in (3, 4)  # its picture, if it is the one
    touch(raw / "imagesTr" / "case_03_0000.nii.gz")
    assert again() in (3, 4)
    record = out / "cases" / "Seeded" / "case_04" / "noise_1.json"
    whole = record.read_bytes()
    record.write_bytes(whole[: len(whole) // 2])
    assert again() == 1
    assert record.read_bytes() == whole
    touch(model / f"{PLAIN}__{PLANS}__2d" / "fold_1" / "checkpoint_final.pth")  # another fold's
    assert again() == 0
    touch(model / f"{PLAIN}__{PLANS}__2d" / "fold_0" / "checkpoint_final.pth")
    assert again() == 2 * 3 + 1
    assert (out / "cases.csv").read_bytes() == before


def test_one_model_more_is_all_that_is_predicted(models, stress, tmp_path, predictions):
    what = (*NOISE, "--cases", "case_03")
    stress(models, tmp_path, *what)
    assert predictions() == 2
    stress(models, tmp_path, *what, tr=(PLAIN, AWARE_MODEL))
    assert predictions() == 2
    assert {row["model"] for row in rows_of(tmp_path)} == {"Seeded", "AnomalyAware"}


def test_networks_that_make_error_maps_count_as_well(changeable, stress, tmp_path, predictions):
    what = (*NOISE, "--cases", "case_03")
    a = changeable.root / "nnUNet_results" / DATA / f"nnUNetTrainerInpaintingMimic__{PLANS}__2d_inpainting"
    stress(changeable, tmp_path, *what, tr=(AWARE_MODEL,))
    assert predictions() == 2
    touch(a / "fold_0" / "checkpoint_final.pth")  # the same, written again
    stress(changeable, tmp_path, *what, tr=(AWARE_MODEL,))
    assert predictions() == 2


# -- what fails -------------------------------------------------------------------------------------------------------


def test_cases_that_fail_are_named_and_the_others_go_on(changeable, stress, tmp_path):
    images, labels = (changeable.root / "nnUNet_raw" / DATA / name for name in ("imagesTr", "labelsTr"))
    (images / "case_00_0000.nii.gz").unlink()
    image = nibabel.load(images / "case_01_0000.nii.gz")
    values = np.asarray(image.dataobj).copy()
    values[3, 3, 3] = np.nan
    nibabel.save(nibabel.Nifti1Image(values, image.affine), images / "case_01_0000.nii.gz")
    for case, change in {
        "case_02": lambda array: np.where(array == 1, 2, array),  # no bone
        "case_03": lambda array: np.where(array == 2, 7, array),  # a label that is not the dataset's
        "case_04": lambda array: array[1:],
    }.items():
        old = sitk.ReadImage(str(labels / f"{case}.nii.gz"))
        new = sitk.GetImageFromArray(change(sitk.GetArrayFromImage(old)).astype(np.uint8))
        new.SetSpacing(old.GetSpacing())
        sitk.WriteImage(new, str(labels / f"{case}.nii.gz"))
    result = stress(changeable, tmp_path / "out", *NOISE, folds=("0", "1"), expect=1)
    failed = dict(line[7:].split(": ", 1) for line in result.stdout.splitlines() if line.startswith("FAILED "))
    for case, reason in {
        "case_00": "case_00_0000.nii.gz does not exist",
        "case_01": "holds NaN or infinity",
        "case_02": "the label map has no voxel of 1: no place for a corruption",
        "case_03": "holds the labels [7], which dataset.json does not have",
        "case_04": "has another grid than",
    }.items():
        assert reason in failed.pop(case)
    assert not failed
    assert {row["case"] for row in rows_of(tmp_path / "out")} == {"case_05"}
    assert len(load_json(tmp_path / "out" / "summary.json")["failed"]) == 5


def test_a_size_larger_than_the_image_fails_by_corruption_and_the_others_go_on(models, stress, tmp_path):
    more = ("--corruptions", "bright_lesion", "noise", "--severities", "1", "--cases", "2", "--size-mm", "100")
    result = stress(models, tmp_path, *more, expect=1)
    failed = [line for line in result.stdout.splitlines() if line.startswith("FAILED ")]
    assert [line.split(": ")[0] for line in failed] == [
        "FAILED case_03, bright_lesion 1", "FAILED case_04, bright_lesion 1",
    ]  # fmt: skip
    assert all("radius 100 mm is larger than the image" in line for line in failed)
    assert {row["corruption"] for row in rows_of(tmp_path)} == {"none", "noise"}


def test_a_model_that_fails_on_an_image_is_named(models, stress, tmp_path, monkeypatch):
    predict = Predictor.predict

    def fails(self, image, properties):
        if self.reconstruction is not None:
            raise RuntimeError("out of memory")
        return predict(self, image, properties)

    monkeypatch.setattr(Predictor, "predict", fails)
    result = stress(models, tmp_path, *NOISE, "--cases", "case_03", tr=(PLAIN, AWARE_MODEL), expect=1)
    assert "FAILED AnomalyAware: case_03, noise 1: RuntimeError: out of memory" in result.stdout
    assert {row["model"] for row in rows_of(tmp_path)} == {"Seeded"}


def test_where_no_case_can_be_tested_it_says_why(changeable, stress, tmp_path):
    for path in (changeable.root / "nnUNet_raw" / DATA / "labelsTr").glob("*.nii.gz"):
        path.unlink()
    result = stress(changeable, tmp_path / "out", *NOISE, expect=2)
    assert "No case could be tested. case_03: InputError: " in result.stderr and "does not exist" in result.stderr


def test_help_imports_nothing_heavy():
    script = (
        "import sys\n"
        "from nnunet_anomaly.cli.main import main\n"
        "try:\n    main(['stress', '--help'])\n"
        "except SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'nnunetv2', 'SimpleITK', 'scipy', 'matplotlib') if name in sys.modules])\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, encoding="utf-8", check=True)
    assert run.stdout.splitlines()[-1] == "[]" and "--cleaned" in run.stdout


def test_records_are_json_without_nan(models, stress, tmp_path):
    stress(models, tmp_path, *NOISE, "--cases", "case_03")
    for path in (tmp_path / "cases").rglob("*.json"):
        json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(word))
