"""``nnunet-anomaly lesions`` and ``nnunet-anomaly tune bml`` on error maps (-e)."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from nnunet_anomaly.cli.main import main
from nnunet_anomaly.phantoms.implants import implant_lesion
from nnunet_anomaly.postprocessing.bml_morphology import error_map_morphology
from nnunet_anomaly.settings import AnomalySettings, BmlSettings

SPACING_MM = (3.0, 0.5, 0.5)
CASES = [f"case_{index}" for index in range(4)]


def knee(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Image, error map, label map (1 and 2 bone, 3 not), lesion: bright, dark, bright, none."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((4, 20, 24), np.uint8)
    labels[1:3, 3:17, 3:12], labels[1:3, 3:17, 12:21], labels[:, 18:19, 3:21] = 1, 2, 3
    lesion = np.zeros(labels.shape, np.uint8)
    if seed < 3:
        lesion[1:3, 6:12, 6 + seed : 13] = 1
    clean = 400 + ndimage.uniform_filter(rng.normal(0, 30, labels.shape), (0, 2, 2))
    image = clean + (-160.0 if seed == 1 else 160.0) * lesion
    error = ((image - clean + rng.normal(0, 25, labels.shape)) / 500) ** 2
    return image.astype(np.float32), error.astype(np.float32), labels, lesion


@pytest.fixture
def folder(case_folder):
    """Four cases, the last without lesion; error maps in two folds."""
    for index, name in enumerate(CASES):
        image, error, labels, lesion = knee(index)
        case_folder.write(image, f"images/{name}_0000.nii.gz")
        case_folder.write(error, f"fold_{index % 2}/{name}.nii.gz")
        case_folder.write(labels, f"labels/{name}.nii.gz")
        case_folder.write(lesion, f"truth/{name}.nii.gz")
    return case_folder


def folds(folder) -> list[str]:
    return ["-e", str(folder / "fold_0"), str(folder / "fold_1")]


def lesions(folder, *extra: str, labels: tuple[str, ...] = ("1", "2")) -> int:
    common = ["-b", str(folder / "labels"), "--labels", *labels, "-o", str(folder / "out"), "-np", "1"]
    return main(["lesions", *common, *extra])


def tune(folder, *extra: str) -> int:
    grid = ["--opening-mm", "0", "0.5", "--closing-mm", "0", "1", "--minimum-mm3", "0", "6"]
    files = ["-b", str(folder / "labels"), "--labels", "1", "2", "-ref", str(folder / "truth"), "-np", "1"]
    return main(["tune", "bml", *files, "-o", str(folder / "tuning"), *grid, *folds(folder), *extra])


def expected_mask(index: int, settings: BmlSettings) -> np.ndarray:
    _, error, labels, _ = knee(index)
    return error_map_morphology(error, np.isin(labels, (1, 2)), SPACING_MM, settings)[0]


# --- lesions ---------------------------------------------------------------------------------------------------------


def as_new_images(folder) -> list[str]:
    """As ``error-maps -i`` writes, and in a derived dataset: the error map is the channel after images."""
    for index, name in enumerate(CASES):
        shutil.copy(folder / f"images/{name}_0000.nii.gz", folder / f"new/{name}_0000.nii.gz")
        shutil.copy(folder / f"fold_{index % 2}/{name}.nii.gz", folder / f"new/{name}_0001.nii.gz")
    (folder / "new/error_maps.json").write_text("{}")
    return ["-e", str(folder / "new"), "--channel", "1"]


def as_other_formats(folder) -> list[str]:
    """Error maps have the file ending of their dataset."""
    for path, ending in zip(
        sorted(folder.path.glob("fold_*/*.nii.gz")), (".nrrd", ".mha", ".nii", ".nrrd"), strict=True
    ):
        sitk.WriteImage(sitk.ReadImage(str(path)), str(folder / "new" / path.name.replace(".nii.gz", ending)))
    return ["-e", str(folder / "new")]


@pytest.mark.parametrize("layout", [folds, as_new_images, as_other_formats])
def test_lesions_of_every_layout_are_those_of_the_function(folder, layout, capsys):
    (folder / "new").mkdir()
    chosen = replace(BmlSettings(), otsu="slice", opening_mm=0.5, closing_mm=0.5, minimum_mm3=4)
    assert (
        lesions(
            folder,
            *layout(folder),
            *[f"--set=bml.{name}={json.dumps(getattr(chosen, name))}" for name in ("otsu", "opening_mm", "closing_mm")],
            "--set=bml.minimum_mm3=4",
            "--save-residuals",
        )
        == 0
    )
    for index, name in enumerate(CASES):
        _, error, labels, lesion = knee(index)
        bone = np.isin(labels, (1, 2))
        written = sitk.ReadImage(str(folder / f"out/{name}.nii.gz"))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(written), expected_mask(index, chosen))
        assert written.GetOrigin() == pytest.approx((1, -2, 3)) and written.GetPixelID() == sitk.sitkUInt8
        assert written.GetSpacing() == pytest.approx(SPACING_MM[::-1])
        np.testing.assert_array_equal(folder.read(f"out/residuals/{name}.nii.gz"), np.where(bone, error, 0))
        if index < 3:  # the dark lesion as well
            assert (expected_mask(index, chosen) & (lesion > 0)).sum() > 0.6 * lesion.sum()
    summary = folder.json("out/lesions.json")
    assert summary["made_of"] == "error maps" and summary["cases"] == 4
    assert "equalisation" not in summary["settings"] and summary["settings"]["otsu"] == "slice"


def test_channels_of_images_are_not_taken_for_cases(folder, capsys):
    (folder / "new").mkdir()
    as_new_images(folder)
    assert lesions(folder, "-e", str(folder / "new")) == 2
    assert "case_0_0000 is a channel of case_0. Say by --channel" in capsys.readouterr().err
    for path in sorted(folder.path.glob("fold_*/*.nii.gz")):  # but cases may have such names
        path.rename(path.with_name(f"knee_{path.name[5]:0>4}.nii.gz"))
    for path in sorted((folder / "labels").iterdir()):
        path.rename(path.with_name(f"knee_{path.name[5]:0>4}.nii.gz"))
    assert lesions(folder, *folds(folder)) == 0
    assert (folder / "out/knee_0003.nii.gz").is_file()


def test_failed_cases_are_named_and_leave_no_old_mask(folder, capsys):
    assert lesions(folder, *folds(folder)) == 0
    _, error, _, _ = knee(0)
    error[0, 0, 0] = -0.5  # outside the bone
    folder.write(error, "fold_0/case_0.nii.gz")
    folder.write(knee(1)[1], "fold_1/case_1.nii.gz", (3.0, 0.5, 0.6))
    error[0, 0, 0] = np.nan
    folder.write(error, "fold_0/case_2.nrrd")  # NIfTI files are looked at before
    (folder / "fold_0/case_2.nii.gz").unlink()
    (folder / "labels/case_3.nii.gz").unlink()
    assert lesions(folder, *folds(folder)) == 1
    said = capsys.readouterr().err
    assert "case_0: InputError" in said and "case_0.nii.gz: The error map holds negative values, down to -0.5" in said
    assert "case_1: GeometryError" in said and "fold_1/case_1.nii.gz" in said and "spacing" in said
    assert "case_2.nrrd: The error map holds float32 values that are NaN, infinite" in said
    assert "case_3: InputError: There is no bone mask of the same name as" in said
    assert not list((folder / "out").glob("*.nii.gz")) and not list((folder / "out/cases").iterdir())


def test_images_beside_error_maps_only_tell_the_grid(folder, capsys):
    assert lesions(folder, *folds(folder)) == 0
    masks = {name: folder.read(f"out/{name}.nii.gz") for name in CASES}
    folder.write(np.zeros((4, 20, 24), np.int16), "images/case_0_0000.nii.gz")  # values do not count
    folder.write(knee(1)[0], "images/case_1_0000.nii.gz", (3.0, 0.5, 0.6))
    (folder / "images/case_2_0000.nii.gz").unlink()
    assert lesions(folder, *folds(folder), "-i", str(folder / "images")) == 1
    said = capsys.readouterr().err
    assert "case_1: GeometryError" in said and "case_1_0000.nii.gz" in said
    assert "case_2: InputError" in said and "case_2_0000.nii.gz does not exist" in said
    for name in ("case_0", "case_3"):
        np.testing.assert_array_equal(folder.read(f"out/{name}.nii.gz"), masks[name])
    assert len(list((folder / "out").glob("*.nii.gz"))) == 2


def test_error_maps_after_reconstructions_are_done_again_and_back(folder, capsys):
    """The very same files, as channel 0, once as reconstructions and once as error maps."""
    for index, name in enumerate(CASES):
        shutil.copy(folder / f"fold_{index % 2}/{name}.nii.gz", folder / f"fold_0/{name}_0000.nii.gz")
    reconstructions = ["-i", str(folder / "images"), "-r", str(folder / "fold_0")]
    error_maps = ["-i", str(folder / "images"), "-e", str(folder / "fold_0"), "--channel", "0"]
    (folder / "settings.json").write_text(json.dumps({"bml": {"opening_mm": 0.5}}))
    chosen = ["--settings", str(folder / "settings.json")]
    made_of = []
    for source in (reconstructions, error_maps, reconstructions):
        capsys.readouterr()
        assert lesions(folder, *source, *chosen) == 0
        assert "4 done, 0 were there already" in capsys.readouterr().out
        assert lesions(folder, *source, *chosen) == 0
        assert "0 done, 4 were there already" in capsys.readouterr().out
        made_of.append(folder.json("out/lesions.json")["made_of"])
        record = folder.json("out/cases/case_0.json")["made_from"]["settings"]
        assert record["made_of"] == made_of[-1]
        assert ("equalisation" in record["settings"]) == (made_of[-1] == "reconstructions")
        of_error_map = expected_mask(1, replace(BmlSettings(), opening_mm=0.5))
        assert of_error_map.any()
        assert np.array_equal(folder.read("out/case_1.nii.gz"), of_error_map) == (made_of[-1] == "error maps")
    assert made_of == ["reconstructions", "error maps", "reconstructions"]
    assert lesions(folder, *error_maps, *chosen) == 0
    capsys.readouterr()
    (folder / "settings.json").write_text(json.dumps({"bml": {"opening_mm": 0.5, "equalisation": "none"}}))
    assert lesions(folder, *error_maps, *chosen) == 0
    assert "0 done, 4 were there already" in capsys.readouterr().out  # equalisation does not count


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--set", "bml.equalisation=none"], "--set bml.equalisation: error maps (-e) are not equalised"),
        (["--channel", "2"], "no error map, <case>_0002.nii.gz"),
    ],
)
def test_wrong_command_lines_are_refused_before_any_work(folder, capsys, extra, message):
    assert lesions(folder, *folds(folder), *extra) == 2
    assert message in capsys.readouterr().err and not (folder / "out").exists()


def test_one_of_both_sources_is_needed_and_reconstructions_need_images(folder, capsys):
    for source in ([], [*folds(folder), "-r", str(folder / "fold_0")]):
        with pytest.raises(SystemExit) as stopped:
            lesions(folder, *source)
        assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "one of the arguments -r -e is required" in said and "not allowed with argument -e" in said
    assert lesions(folder, "-r", str(folder / "fold_0")) == 2
    assert "name the folder of these with -i" in capsys.readouterr().err
    shutil.copy(folder / "fold_0/case_0.nii.gz", folder / "fold_1")
    assert lesions(folder, *folds(folder)) == 2
    assert "two error maps of case_0" in capsys.readouterr().err
    assert lesions(folder, *folds(folder), "-o", str(folder / "fold_1")) == 2
    assert "another output folder" in capsys.readouterr().err


# --- tune bml --------------------------------------------------------------------------------------------------------


def dice(mask: np.ndarray, lesion: np.ndarray) -> float:
    return 2 * np.count_nonzero(mask & lesion) / (np.count_nonzero(mask) + np.count_nonzero(lesion))


def test_the_search_table_is_that_of_trying_everything(folder, capsys):
    assert tune(folder) == 0
    said = capsys.readouterr().out
    assert "16 combinations on 4 cases" in said and "Best: otsu " in said
    rows = folder.rows("tuning/search.csv")
    names = ["otsu", "opening_mm", "closing_mm", "minimum_mm3"]
    assert list(rows[0]) == [*names, "dice", "dice_pooled", "lesion_free_mm3"] and len(rows) == 16
    tried = itertools.product(("slice", "volume"), (0.0, 0.5), (0.0, 1.0), (0.0, 6.0))
    for row, values in zip(rows, tried, strict=True):
        assert [row["otsu"], *(float(row[name]) for name in names[1:])] == list(values)
        masks = [expected_mask(i, replace(BmlSettings(), **dict(zip(names, values, strict=True)))) for i in range(4)]
        truth = [knee(index)[3] > 0 for index in range(4)]
        by_case = [dice(mask, lesion) for mask, lesion in zip(masks[:3], truth, strict=False)]
        assert float(row["dice"]) == pytest.approx(np.mean(by_case), abs=1e-9)
        assert float(row["dice_pooled"]) == pytest.approx(dice(np.stack(masks), np.stack(truth)), abs=1e-9)
        assert float(row["lesion_free_mm3"]) == pytest.approx(masks[3].sum() * 0.75, abs=1e-3)
    assert len({row["dice"] for row in rows}) > 3
    best = max(rows, key=lambda row: (float(row["dice"]), -float(row["lesion_free_mm3"])))
    chosen = folder.json("tuning/settings.json")["bml"]
    assert [chosen[name] for name in names] == [best["otsu"], *(float(best[name]) for name in names[1:])]
    assert "equalisation" not in folder.json("tuning/search.json")["grid"]
    page = (folder / "tuning/report.md").read_text(encoding="utf-8")
    assert "error maps, which are not equalised" in page and page.count("equalisation") == 1


def test_what_was_chosen_goes_into_the_plans_and_equalisation_stays(folder, capsys):
    block = AnomalySettings().with_values({"roi.labels": [1, 2], "bml.equalisation": "volume"}).to_dict()
    (folder / "model").mkdir()
    (folder / "model/plans.json").write_text(json.dumps({"plans_name": "P", "anomaly": block}))
    assert tune(folder, "-m", str(folder / "model")) == 0
    bml = folder.json("model/plans.json")["anomaly"]["bml"]
    assert bml == folder.json("tuning/settings.json")["bml"]
    assert bml["equalisation"] == "volume"
    assert lesions(folder, *folds(folder), "-m", str(folder / "model")) == 0
    best = folder.json("tuning/search.json")["best"]
    found = [dice(folder.read(f"out/{name}.nii.gz") > 0, knee(i)[3] > 0) for i, name in enumerate(CASES[:3])]
    assert np.mean(found) == pytest.approx(best["dice"])
    capsys.readouterr()
    assert tune(folder, "-m", str(folder / "model")) == 0
    assert "0 done, 4 were there already" in capsys.readouterr().out


def test_searches_by_reconstructions_and_by_error_maps_do_not_share_cases(folder, capsys):
    (folder / "both").mkdir()
    for index, name in enumerate(CASES):
        shutil.copy(folder / f"fold_{index % 2}/{name}.nii.gz", folder / f"both/{name}_0000.nii.gz")
    common = ["-i", str(folder / "images"), "-b", str(folder / "labels"), "--labels", "1", "2", "-np", "1"]
    grid = ["-ref", str(folder / "truth"), "-o", str(folder / "tuning"), "--opening-mm", "0", "--closing-mm", "0"]
    grid += ["--minimum-mm3", "0"]
    both = str(folder / "both")
    for source in (["-r", both], ["-e", both, "--channel", "0"], ["-r", both]):
        capsys.readouterr()
        main(["tune", "bml", *common, *grid, *source])
        assert "4 done, 0 were there already" in capsys.readouterr().out


def test_derived_values_and_bad_input_of_a_search(folder, capsys):
    common = ["-b", str(folder / "labels"), "--labels", "1", "2", "-ref", str(folder / "truth"), "-np", "1"]
    arguments = ["tune", "bml", *common, "-o", str(folder / "tuning"), *folds(folder)]
    assert main(arguments) == 0
    grid = folder.json("tuning/search.json")["grid"]
    assert grid["opening_mm"] == [0, 0.5, 1, 1.5] and grid["closing_mm"] == [0, 0.5, 1, 2]
    for extra, message in (
        (["--equalisations", "slice"], "--equalisations: error maps (-e) are not equalised"),
        (["--set", "bml.equalisation=slice"], "--set bml.equalisation"),
    ):
        assert main([*arguments, *extra]) == 2
        assert message in capsys.readouterr().err
    folder.write(-knee(1)[1], "fold_1/case_1.nii.gz")
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert "fold_1/case_1.nii.gz: The error map holds negative values" in said and "Nothing was chosen" in said
    assert not (folder / "tuning/settings.json").exists()
    (folder / "fold_1/case_1.nii.gz").unlink()
    assert main(arguments) == 2
    assert "There is no error map in -e for: case_1" in capsys.readouterr().err


def test_lesions_implanted_into_real_images(real_data, case_folder):
    """Squared differences to the clean image, smoothed and with noise; every second lesion is dark."""
    for index, path in enumerate(sorted((real_data / "hippocampus/images").glob("*.nii.gz"))[:4]):
        image = case_folder.read(path).astype(np.float32)
        region = ndimage.binary_dilation(
            case_folder.read(real_data / "hippocampus/labels" / path.name) > 0, iterations=5
        )
        rng = np.random.default_rng(index)
        kind = "bright" if index % 2 else "dark"
        spotted, lesion = implant_lesion(image, region, (1, 1, 1), rng=rng, radius_mm=4, contrast=2, kind=kind)
        clean = ndimage.gaussian_filter(image, 0.7) + rng.normal(0, 0.15 * image.std(), image.shape)
        error = ((spotted - clean) / image.std() / 10) ** 2
        case_folder.write(error.astype(np.float32), f"fold_{index % 2}/{path.name}", (1, 1, 1))
        case_folder.write(region.astype(np.uint8), f"labels/{path.name}", (1, 1, 1))
        case_folder.write(lesion.astype(np.uint8), f"truth/{path.name}", (1, 1, 1))
    common = ["-b", str(case_folder / "labels"), *folds(case_folder), "-np", "1"]
    assert main(["tune", "bml", *common, "-ref", str(case_folder / "truth"), "-o", str(case_folder / "tuning")]) == 0
    best = case_folder.json("tuning/search.json")["best"]
    assert best["dice"] > 0.8
