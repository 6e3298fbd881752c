"""The commands ``nnunet-anomaly lesions`` and ``nnunet-anomaly tune bml``."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from nnunet_anomaly.cli.main import main
from nnunet_anomaly.errors import InputError, SettingsError
from nnunet_anomaly.evaluation.overlap import dice, overlap_counts
from nnunet_anomaly.phantoms.implants import implant_lesion
from nnunet_anomaly.postprocessing.bml_morphology import bml_morphology
from nnunet_anomaly.settings import AnomalySettings, BmlSettings
from nnunet_anomaly.workflow.bml_lesions import Case
from nnunet_anomaly.workflow.tune_bml import (
    Grid,
    at_the_edge,
    best_row,
    count_overlaps,
    derived_radii,
    preference,
    search_table,
)

SPACING_MM = (3.0, 0.5, 0.5)
GRID = Grid(("slice", "none"), ("slice", "volume"), (0.0, 0.5, 1.0), (0.0, 0.5), (0.0, 6.0))


def knee(seed: int, has_lesion: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Image (16 bits), reconstruction on the scale [0, 1], label map (1 and 2 bone, 3 not), lesion."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((5, 24, 28), np.uint8)
    labels[1:4, 3:20, 3:14], labels[1:4, 3:20, 14:24], labels[:, 21:23, 3:24] = 1, 2, 3
    marrow = ndimage.uniform_filter(rng.normal(0, 30, labels.shape), (0, 2, 2))
    clean = 400 + np.where(labels > 0, 0, 300) + marrow
    lesion = np.zeros(labels.shape, np.uint8)
    if has_lesion:
        lesion[1 + seed % 2 : 3 + seed % 2, 6:14, 6 + seed % 5 : 15] = 1
    image = clean + 160 * lesion + rng.normal(0, 8, labels.shape)
    return image.astype(np.int16), (clean / 2000 + 0.1).astype(np.float32), labels, lesion


@pytest.fixture
def folder(case_folder):
    """Four cases, the last without lesion; reconstructions in two folds."""
    for index in range(4):
        image, reconstruction, labels, lesion = knee(index, has_lesion=index < 3)
        name = f"case_{index}"
        case_folder.write(image, f"images/{name}_0000.nii.gz")
        case_folder.write(reconstruction, f"fold_{index % 2}/{name}_0000.nii.gz")
        case_folder.write(labels, f"labels/{name}.nii.gz")
        case_folder.write(lesion, f"truth/{name}.nii.gz")
    return case_folder


@pytest.fixture
def model(folder) -> Path:
    """A model folder: plans with an older block, without the group bml."""
    block = AnomalySettings().with_values({"roi.labels": [1, 2], "seed": 7}).to_dict()
    del block["bml"]
    (folder / "model").mkdir()
    (folder / "model/plans.json").write_text(json.dumps({"plans_name": "P", "anomaly": block, "other": [1, 2]}))
    return folder / "model"


def inputs(folder) -> list[str]:
    folds = [str(folder / "fold_0"), str(folder / "fold_1")]
    return ["-i", str(folder / "images"), "-r", *folds, "-b", str(folder / "labels"), "-np", "1"]


def lesions(folder, *extra: str) -> int:
    return main(["lesions", *inputs(folder), "-o", str(folder / "out"), *extra])


def tune(folder, *extra: str) -> int:
    grid = ["--opening-mm", "0", "0.5", "1", "--closing-mm", "0", "0.5", "--minimum-mm3", "0", "6"]
    grid += ["--equalisations", "slice", "none"]
    references = ["-ref", str(folder / "truth"), "-o", str(folder / "tuning")]
    return main(["tune", "bml", *inputs(folder), *references, *grid, *extra])


# --- lesions ---------------------------------------------------------------------------------------------------------


def test_lesions_of_a_folder(folder, capsys):
    options = ("--labels", "1", "2", "--set", "bml.opening_mm=0.5", "--set", "bml.equalisation=none")
    assert lesions(folder, *options, "--save-residuals") == 0
    chosen = replace(BmlSettings(), opening_mm=0.5, equalisation="none")
    for index in range(4):
        image, reconstruction, labels, lesion = knee(index, has_lesion=index < 3)
        mask, residual = bml_morphology(image, reconstruction, np.isin(labels, (1, 2)), SPACING_MM, chosen)
        written = sitk.ReadImage(str(folder / f"out/case_{index}.nii.gz"))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(written), mask)
        assert written.GetOrigin() == pytest.approx((1, -2, 3)) and written.GetPixelID() == sitk.sitkUInt8
        np.testing.assert_array_equal(folder.read(f"out/residuals/case_{index}.nii.gz"), residual)
        if index < 3:
            assert dice(overlap_counts(lesion, mask.astype(np.uint8))[1]) > 0.85
    row = folder.rows("out/lesions.csv")[0]
    mask = folder.read("out/case_0.nii.gz")
    assert float(row["lesion_mm3"]) == mask.sum() * 0.75 and float(row["bone_mm3"]) == 3 * 17 * 21 * 0.75
    assert int(row["lesions"]) == ndimage.label(mask, np.ones((3, 3, 3)))[1] == 1
    assert row["largest_mm3"] == row["lesion_mm3"]
    summary = folder.json("out/lesions.json")
    assert summary["settings"]["opening_mm"] == 0.5 and summary["labels"] == [1, 2] and not summary["failed"]
    capsys.readouterr()
    assert lesions(folder, *options, "--save-residuals") == 0
    assert "0 done, 4 were there already" in capsys.readouterr().out
    assert lesions(folder, "--labels", "1", "2", "--set", "bml.opening_mm=0.3") == 0
    said = capsys.readouterr()
    assert "4 done" in said.out and "bml.opening_mm 0.3 is less than the finest" in said.err
    assert not list((folder / "out/residuals").iterdir())  # they were of other settings


def test_settings_and_labels_of_the_model(folder, model, capsys):
    assert lesions(folder, "-m", str(model), "--set", 'bml.otsu="slice"') == 0
    assert "Labels of the bones: 1, 2 (roi.labels" in capsys.readouterr().out
    summary = folder.json("out/lesions.json")
    assert summary["labels"] == [1, 2] and summary["settings"]["otsu"] == "slice"
    (folder / "settings.json").write_text(json.dumps({"bml": {"closing_mm": 1.5}}))
    assert lesions(folder, "--settings", str(folder / "settings.json")) == 0
    summary = folder.json("out/lesions.json")
    assert summary["settings"]["closing_mm"] == 1.5 and summary["labels"] == []


def test_failed_cases_are_named_and_leave_no_old_mask(folder, capsys):
    assert lesions(folder) == 0
    (folder / "labels/case_0.nii.gz").unlink()
    folder.write(np.zeros((5, 24, 28), np.uint8), "labels/case_1.nii.gz")
    folder.write(knee(2)[0], "images/case_2_0000.nii.gz", (3.0, 0.6, 0.5))
    shutil.copy(folder / "fold_1/case_3_0000.nii.gz", folder / "fold_0/case_4_0000.nii.gz")
    assert lesions(folder) == 1
    said = capsys.readouterr().err
    assert "case_0: InputError: There is no bone mask of the same name" in said
    assert "case_1: InputError" in said and "holds no label" in said
    assert "case_2: GeometryError" in said and "spacing" in said
    assert "case_4: InputError: There is no image of the same name" in said
    assert [path.name for path in (folder / "out").glob("*.nii.gz")] == ["case_3.nii.gz"]
    assert [row["case"] for row in folder.rows("out/lesions.csv")] == ["case_3"]
    folder.write((knee(3)[2] > 0).astype(np.float32), "fold_1/case_3_0000.nii.gz")
    assert lesions(folder) == 1
    said = capsys.readouterr().err
    assert "case_3_0000.nii.gz: Outside the bone" in said and "one value" in said
    (folder / "fold_1/case_1_0000.nii.gz").unlink()
    assert lesions(folder) == 1
    assert "case_1" not in capsys.readouterr().err


def test_colours_and_values_near_the_limits_of_numbers_are_named(folder, capsys):
    image = sitk.ReadImage(str(folder / "images/case_0_0000.nii.gz"))
    sitk.WriteImage(sitk.Compose([image] * 3), str(folder / "images/case_0_0000.nii.gz"))
    folder.write(knee(1)[0] * 1e300, "images/case_1_0000.nii.gz")
    assert lesions(folder) == 1
    said = capsys.readouterr().err
    assert "images/case_0_0000.nii.gz has 3 components per voxel" in said
    assert "case_1_0000.nii.gz: The image or its reconstruction holds values near the limits" in said


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--channel", "1"], "no reconstruction"),
        (["--set", "focal.beta=1"], "only settings of the group bml"),
        (["--set", "bml.opening_mm=-1"], "at least 0"),
        (["--settings", "plans.json"], "does not exist"),
        (["--labels", "0"], "not labels of structures"),
    ],
)
def test_wrong_command_lines_are_refused_before_any_work(folder, capsys, extra, message):
    assert lesions(folder, *extra) == 2
    assert message in capsys.readouterr().err and not (folder / "out").exists()


def test_output_among_the_input_two_reconstructions_and_wrong_settings_are_refused(folder, capsys):
    assert main(["lesions", *inputs(folder), "-o", str(folder / "labels")]) == 2
    assert "another output folder" in capsys.readouterr().err
    (folder / "wrong.json").write_text(json.dumps({"bml": {}, "focal": {}}))
    assert lesions(folder, "--settings", str(folder / "wrong.json")) == 2
    assert "and nothing else" in capsys.readouterr().err
    shutil.copy(folder / "fold_0/case_0_0000.nii.gz", folder / "fold_1")
    assert lesions(folder) == 2
    assert "two reconstructions of case_0" in capsys.readouterr().err


# --- the search ------------------------------------------------------------------------------------------------------


def case_of(seed: int, has_lesion: bool = True) -> tuple[Case, np.ndarray]:
    image, reconstruction, labels, lesion = knee(seed, has_lesion)
    return Case(image, reconstruction, np.isin(labels, (1, 2)), SPACING_MM, None), lesion > 0


@pytest.mark.parametrize("element", ["disc", "ball"])
def test_every_combination_counts_what_bml_morphology_finds(element):
    case, lesion = case_of(1)
    base = replace(BmlSettings(), element=element)
    counts = count_overlaps(case, lesion, base, GRID)
    assert len(counts) == len(GRID.combinations()) == 48
    for combination, found in zip(GRID.combinations(), counts, strict=True):
        mask, _ = bml_morphology(*case[:4], replace(base, **combination))
        assert found == (mask.sum(), (mask & lesion).sum()), combination
    assert len(set(counts)) > 12


def record(reference: int, found: list[int], hit: list[int], voxel_mm3: float = 0.5) -> dict:
    return {"reference_voxels": reference, "found": found, "hit": hit, "voxel_mm3": voxel_mm3, "outside_bone_voxels": 0}


def test_figures_of_the_table_by_hand():
    grid = Grid(("slice",), ("slice",), (0.0, 1.0), (0.0,), (0.0,))
    records = {
        "a": record(10, [10, 0], [5, 0]),
        "b": record(4, [12, 4], [4, 4]),
        "healthy": record(0, [30, 2], [0, 0]),
        "healthy_too": record(0, [10, 0], [0, 0]),
    }
    first, second = search_table(records, grid)
    assert first["dice"] == pytest.approx((2 * 5 / 20 + 2 * 4 / 16) / 2) and second["dice"] == pytest.approx(0.5)
    assert first["dice_pooled"] == pytest.approx(2 * 9 / (14 + 62))
    assert second["dice_pooled"] == pytest.approx(2 * 4 / (14 + 6))
    assert first["lesion_free_mm3"] == 0.5 * 40 / 2 and second["lesion_free_mm3"] == 0.5 * 2 / 2
    assert (first["opening_mm"], second["opening_mm"]) == (0, 1)
    del records["healthy"], records["healthy_too"]
    assert best_row([first, second], grid, "dice") == best_row([first, second], grid, "dice_pooled") == 1
    first, second = search_table(records, grid)
    assert first["lesion_free_mm3"] is second["lesion_free_mm3"] is None
    assert best_row([first, second], grid, "dice") == 0  # a tie: the smaller opening


def test_ties_go_to_the_smallest_filters_then_to_the_order_of_the_grid():
    grid = Grid(("none", "slice"), ("volume", "slice"), (1.0, 0.0), (2.0, 0.0), (9.0, 0.0))
    rows = [{**combination, "dice": 0.5, "lesion_free_mm3": None} for combination in grid.combinations()]
    expected = {"equalisation": "none", "otsu": "volume", "opening_mm": 0, "closing_mm": 0, "minimum_mm3": 0}
    assert rows[best_row(rows, grid, "dice")] == {**expected, "dice": 0.5, "lesion_free_mm3": None}
    rows[0]["dice"] = 0.51
    assert best_row(rows, grid, "dice") == 0
    assert at_the_edge(rows[0], grid) == ["opening_mm", "closing_mm", "minimum_mm3"]
    assert at_the_edge(rows[-1], grid) == []
    with pytest.raises(InputError, match="No combination hits"):
        best_row([{**row, "dice": 0.0} for row in rows], grid, "dice")


def test_ties_of_dice_go_to_what_finds_less_without_lesion():
    grid = Grid(("slice",), ("slice", "volume"), (0.0, 1.0), (0.0,), (0.0,))
    found_mm3 = [300.0, 3.0, 3.0, 40.0]
    rows = [
        {**combination, "dice": 0.5, "lesion_free_mm3": volume_mm3}
        for combination, volume_mm3 in zip(grid.combinations(), found_mm3, strict=True)
    ]
    assert best_row(rows, grid, "dice") == 2  # 3 mm^3, and the smaller opening
    assert [rows.index(row) for row in sorted(rows, key=lambda row: preference(row, grid, "dice"))] == [2, 1, 3, 0]
    rows[0]["dice"] = 0.6
    assert best_row(rows, grid, "dice") == 0


def test_values_to_try_are_checked_and_derived(folder):
    for wrong in ({"opening_mm": ()}, {"closing_mm": (1.0, 1.0)}, {"minimum_mm3": (-1.0,)}, {"otsu": ("case",)}):
        with pytest.raises(SettingsError, match=f"bml.{next(iter(wrong))}"):
            replace(GRID, **wrong)
    folder.write(np.zeros((3, 4, 5), np.uint8), "odd_0000.nii.gz", (3.0, 0.3646, 0.4))
    from nnunet_anomaly.workflow.bml_lesions import CaseFiles

    cases = {
        "odd": CaseFiles(folder / "odd_0000.nii.gz", folder.path, folder.path),
        "no image": CaseFiles(None, folder.path, folder.path),
    }
    radii = derived_radii(cases, BmlSettings())
    assert radii["opening_mm"] == (0, 0.4, 0.8, 1.2) and radii["closing_mm"] == (0, 0.4, 0.8, 1.6)
    discs = [np.pi * (pixels * 0.4) ** 2 * 3 for pixels in (0, 2, 4, 8)]
    assert radii["minimum_mm3"] == pytest.approx(discs, abs=1e-3)
    with pytest.raises(InputError, match="None of the images"):
        derived_radii({"no image": cases["no image"]}, BmlSettings())


# --- tune bml --------------------------------------------------------------------------------------------------------


def test_tune_writes_the_best_into_the_plans_and_lesions_takes_it(folder, model, capsys):
    before = json.loads((model / "plans.json").read_text(encoding="utf-8"))
    assert tune(folder, "-m", str(model)) == 0
    said = capsys.readouterr()
    assert "48 combinations on 4 cases" in said.out
    rows = folder.rows("tuning/search.csv")
    assert len(rows) == 48
    settings = folder.json("tuning/settings.json")["bml"]
    best = max(rows, key=lambda row: (float(row["dice"]), -float(row["lesion_free_mm3"])))
    assert float(best["dice"]) > 0.85 and float(best["dice"]) > 1.2 * min(float(row["dice"]) for row in rows)
    after = json.loads((model / "plans.json").read_text(encoding="utf-8"))
    assert after["anomaly"].pop("bml") == settings and after == before
    assert lesions(folder, "-m", str(model)) == 0
    by_case = [
        dice(overlap_counts(folder.read(f"truth/case_{i}.nii.gz"), folder.read(f"out/case_{i}.nii.gz"))[1])
        for i in range(3)
    ]
    assert np.mean(by_case) == pytest.approx(float(best["dice"]))
    free = float(rows[rows.index(best)]["lesion_free_mm3"])
    assert free == pytest.approx(folder.read("out/case_3.nii.gz").sum() * 0.75, abs=1e-3)
    cases = {row["case"]: row for row in folder.rows("tuning/cases.csv")}
    assert [float(cases[f"case_{i}"]["dice"]) for i in range(3)] == pytest.approx(by_case)
    assert cases["case_3"]["dice"] == ""
    page = (folder / "tuning/report.md").read_text(encoding="utf-8")
    assert "48 combinations on 4 cases, 3 of them with a lesion" in page and "[search.csv](search.csv)" in page
    capsys.readouterr()
    assert tune(folder, "-m", str(model)) == 0
    assert "0 done, 4 were there already" in capsys.readouterr().out


def test_tune_without_a_model_keeps_what_it_does_not_search(folder, capsys):
    assert tune(folder, "--labels", "1", "2", "--set", "bml.element=ball", "--otsu", "volume", "--pooled") == 0
    settings = folder.json("tuning/settings.json")
    assert list(settings) == ["bml"] and settings["bml"]["element"] == "ball" and settings["bml"]["otsu"] == "volume"
    summary = folder.json("tuning/search.json")
    rows = folder.rows("tuning/search.csv")
    assert len(rows) == 24 and summary["criterion"] == "dice_pooled"
    assert summary["best"]["dice_pooled"] == max(float(row["dice_pooled"]) for row in rows)
    assert lesions(folder, "--settings", str(folder / "tuning/settings.json")) == 0


def test_a_lesion_beyond_the_bone_is_told(folder, capsys):
    assert tune(folder, "--labels", "1") == 0
    said = capsys.readouterr()
    assert "beyond the bone mask" in said.err
    assert "beyond the bone mask" in (folder / "tuning/report.md").read_text(encoding="utf-8")


def test_validation_cases_without_any_lesion_are_an_error(folder, capsys):
    for index in range(3):
        folder.write(np.zeros((5, 24, 28), np.uint8), f"truth/case_{index}.nii.gz")
    assert tune(folder) == 2
    assert "None of the 4 reference masks has a lesion" in capsys.readouterr().err
    assert not (folder / "tuning").exists()


def test_a_search_that_is_refused_leaves_no_result_of_an_earlier_one(folder, capsys):
    assert tune(folder) == 0
    results = ["settings.json", "search.csv", "cases.csv", "search.json", "report.md"]
    assert all((folder / "tuning" / name).is_file() for name in results)
    assert main(["tune", "bml", *inputs(folder), "-ref", str(folder / "tuning"), "-o", str(folder / "tuning")]) == 2
    assert "another output folder" in capsys.readouterr().err
    assert all((folder / "tuning" / name).is_file() for name in results)  # nothing is removed from the input
    for index in range(3):
        folder.write(np.zeros((5, 24, 28), np.uint8), f"truth/case_{index}.nii.gz")
    assert tune(folder) == 2
    assert [path.name for path in (folder / "tuning").iterdir()] == ["cases"]


def test_radii_that_do_nothing_are_told(folder, capsys):
    grid = ["--opening-mm", "0", "0.3", "--closing-mm", "0.2", "1", "--minimum-mm3", "0"]
    references = ["-ref", str(folder / "truth"), "-o", str(folder / "tuning")]
    assert main(["tune", "bml", *inputs(folder), *references, *grid]) == 0
    said = capsys.readouterr().err
    for name, radius in (("opening_mm", "0.3"), ("closing_mm", "0.2")):
        assert f"In 4 of 4 cases bml.{name} {radius} is less than the finest voxel size in a slice" in said
        assert f"bml.{name} {radius} is less" in (folder / "tuning/report.md").read_text(encoding="utf-8")
    assert "bml.closing_mm 1 is less" not in said and "bml.opening_mm 0 is" not in said


def test_no_equalisation_is_left_out_where_a_bone_fills_its_image(folder, model, capsys):
    folder.write(np.ones((5, 24, 28), np.uint8), "labels/case_1.nii.gz")
    assert tune(folder, "-m", str(model)) == 0
    said = "bml.equalisation none was left out: the bone mask fills the image, so that nothing tells the scale of the "
    assert f"{said}reconstruction, in case_1." in capsys.readouterr().err
    assert said in (folder / "tuning/report.md").read_text(encoding="utf-8")
    rows = folder.rows("tuning/search.csv")
    assert len(rows) == 24 and {row["equalisation"] for row in rows} == {"slice"}
    assert folder.json("tuning/search.json")["grid"]["equalisation"] == ["slice"]
    assert lesions(folder, "-m", str(model)) == 0
    by_case = [
        dice(overlap_counts(folder.read(f"truth/case_{i}.nii.gz"), folder.read(f"out/case_{i}.nii.gz"))[1])
        for i in range(3)
    ]
    assert np.mean(by_case) == pytest.approx(max(float(row["dice"]) for row in rows))
    assert lesions(folder, "-m", str(model), "--set", "bml.equalisation=none") == 1
    assert "case_1_0000.nii.gz: The bone mask fills the image" in capsys.readouterr().err
    alone = ["-ref", str(folder / "truth"), "-o", str(folder / "alone"), "--equalisations", "none"]
    assert main(["tune", "bml", *inputs(folder), *alone]) == 1
    assert "case_1_0000.nii.gz: The bone mask fills the image" in capsys.readouterr().err


def test_a_failed_case_is_named_and_nothing_is_chosen(folder, model, capsys):
    assert tune(folder, "-m", str(model)) == 0
    plans = (model / "plans.json").read_text(encoding="utf-8")
    folder.write(knee(1)[3], "truth/case_1.nii.gz", (3.0, 0.5, 0.6))
    assert tune(folder, "-m", str(model)) == 1
    said = capsys.readouterr()
    assert "case_1: GeometryError" in said.err and "Nothing was chosen" in said.err
    assert (model / "plans.json").read_text(encoding="utf-8") == plans
    assert not (folder / "tuning/settings.json").exists() and not (folder / "tuning/report.md").exists()
    (folder / "truth/case_1.nii.gz").unlink()
    assert tune(folder, "-m", str(model)) == 0
    assert "1 predictions have no reference and were left out: case_1" in capsys.readouterr().out


def test_missing_input_of_tune_is_named(folder, model, capsys):
    (folder / "fold_0/case_0_0000.nii.gz").unlink()
    assert tune(folder) == 2
    assert "no reconstruction in -r for: case_0" in capsys.readouterr().err
    shutil.rmtree(folder / "truth")
    (folder / "truth").mkdir()
    assert tune(folder) == 2
    assert "holds no lesion mask" in capsys.readouterr().err
    (model / "plans.json").write_text(json.dumps({"plans_name": "P", "dataset_name": "Dataset101_Knee"}))
    assert tune(folder, "-m", str(model)) == 2
    assert 'no "anomaly" block' in capsys.readouterr().err


def test_lesions_implanted_into_real_images(real_data, case_folder):
    """The clean image, smoothed and with noise, on nnU-Net's scale, stands for the reconstruction."""
    for index, path in enumerate(sorted((real_data / "hippocampus/images").glob("*.nii.gz"))[:4]):
        image = case_folder.read(path).astype(np.float32)
        region = ndimage.binary_dilation(
            case_folder.read(real_data / "hippocampus/labels" / path.name) > 0, iterations=5
        )
        rng = np.random.default_rng(index)
        spotted, lesion = implant_lesion(image, region, (1, 1, 1), rng=rng, radius_mm=4, contrast=2)
        reconstruction = ndimage.gaussian_filter(image, 0.7) + rng.normal(0, 0.15 * image.std(), image.shape)
        name = path.name.removesuffix(".nii.gz")
        case_folder.write(spotted, f"images/{name}_0000.nii.gz", (1, 1, 1))
        for fold in ("fold_0", "fold_1"):
            (case_folder / fold).mkdir(exist_ok=True)
        scaled = (reconstruction - spotted.mean()) / spotted.std() / 10 + 0.5
        case_folder.write(scaled.astype(np.float32), f"fold_0/{name}_0000.nii.gz", (1, 1, 1))
        case_folder.write(region.astype(np.uint8), f"labels/{name}.nii.gz", (1, 1, 1))
        case_folder.write(lesion.astype(np.uint8), f"truth/{name}.nii.gz", (1, 1, 1))
    assert tune(case_folder) == 0
    best = case_folder.json("tuning/search.json")["best"]
    assert best["dice"] > 0.85 and best["opening_mm"] == 1


def test_2d_images(folder):
    for index in range(4):
        name = f"case_{index}"
        paths = [folder / f"{where}/{name}.nii.gz" for where in ("labels", "truth")]
        for path in (*paths, folder / f"images/{name}_0000.nii.gz", folder / f"fold_{index % 2}/{name}_0000.nii.gz"):
            image = sitk.GetImageFromArray(folder.read(path)[2])
            image.SetSpacing((0.5, 0.5))
            sitk.WriteImage(image, str(path))
    assert tune(folder, "--labels", "1", "2") == 0
    assert lesions(folder, "--labels", "1", "2", "--settings", str(folder / "tuning/settings.json")) == 0
    row, mask = folder.rows("out/lesions.csv")[0], folder.read("out/case_0.nii.gz")
    assert mask.shape == (24, 28) and float(row["lesion_mm3"]) == mask.sum() * 0.25 > 0
