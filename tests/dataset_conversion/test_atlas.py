"""The ATLAS converter on tiny trees of its three releases, with brain masks given, by HD-BET, and missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_anomaly.cli.main import main

SPACE = "space-MNI152NLin2009aSym"
SCANS_11 = [
    ("Site1", "031769", "t01"),
    ("Site1", "031769", "t02"),
    ("Site2", "031800", "t01"),
    ("Site2", "031801", "t01"),
]
CASES_11 = ["031769_t01", "031769_t02", "031800_t01", "031801_t01"]


def write_masks(heads, folder: Path, cases: list[str], suffix: str = "") -> None:
    for seed, name in enumerate(cases):
        heads.write(folder / f"{name}{suffix}.nii.gz", heads.head(seed)[1].astype(np.uint8))


@pytest.fixture
def masks(tmp_path, heads) -> Path:
    write_masks(heads, tmp_path / "masks", CASES_11)
    return tmp_path / "masks"


@pytest.fixture
def release(tmp_path, heads) -> Path:
    """R1.1: four cases of three subjects; lesions of 255, those of the first in two files."""
    for seed, (site, subject, visit) in enumerate(SCANS_11):
        folder = tmp_path / "ATLAS_R1.1" / "Only_Data" / site / subject / visit
        grey, _, lesion = heads.head(seed)
        heads.write(folder / f"{subject}_t1w_deface_stx.nii.gz", grey)
        parts = [lesion == 1, lesion > 1] if seed == 0 else [lesion > 0]
        for number, part in enumerate(parts):
            file = f"{subject}_LesionSmooth{f'_{number}' if number else ''}_stx.nii.gz"
            heads.write(folder / file, part.astype(np.uint8) * 255)
    return tmp_path / "ATLAS_R1.1"


def convert(release: Path, *options) -> int:
    return main(["convert", "atlas", str(release), "-d", "302", "-np", "1", *map(str, options)])


def dataset(raw: Path) -> Path:
    return raw / "Dataset302_ATLAS"


def load(raw: Path, name: str):
    return json.loads((dataset(raw) / f"{name}.json").read_text())


def failed(raw: Path) -> dict[str, str]:
    return load(raw, "integrity_report")["failed"]


def scan(release: Path, index: int) -> Path:
    return release.joinpath("Only_Data", *SCANS_11[index])


def test_r11_is_converted_with_the_union_of_all_lesion_files(release, masks, raw, heads):
    assert convert(release, "--brain-masks", masks) == 0
    for seed, name in enumerate(CASES_11):
        grey, brain, lesion = heads.head(seed)
        image = heads.read(dataset(raw) / "imagesTr" / f"{name}_0000.nii.gz")
        assert image.dtype == np.int16
        np.testing.assert_array_equal(image, np.where(brain, grey, 0))  # the skull is gone
        label = heads.read(dataset(raw) / "labelsTr" / f"{name}.nii.gz")
        np.testing.assert_array_equal(label, np.where(lesion > 0, 2, brain))
        np.testing.assert_array_equal(heads.read(dataset(raw) / "lesionsTr" / f"{name}.nii.gz"), lesion > 0)
    cases = load(raw, "cases")
    assert cases["031769_t02"]["sources"] == {
        "T1": "Only_Data/Site1/031769/t02/031769_t1w_deface_stx.nii.gz",
        "lesion_0": "Only_Data/Site1/031769/t02/031769_LesionSmooth_stx.nii.gz",
        "brain_mask": "031769_t02.nii.gz",
    }
    assert [cases[name]["stratum"] for name in CASES_11] == ["Site1", "Site1", "Site2", "Site2"]
    assert (cases["031769_t02"]["subject"], cases["031769_t02"]["visit"]) == ("031769", "t02")
    splits = load(raw, "splits_final")
    assert len(splits) == 3
    for split in splits:
        assert len({"031769_t01", "031769_t02"} & set(split["val"])) in (0, 2)


def test_skull_can_be_kept(release, masks, raw, heads):
    assert convert(release, "--brain-masks", masks, "--keep-skull") == 0
    image = heads.read(dataset(raw) / "imagesTr" / f"{CASES_11[0]}_0000.nii.gz")
    np.testing.assert_array_equal(image, heads.head(0)[0])
    assert image[~heads.head(0)[1]].any()


def test_r12_by_file_names_wherever_they_lie(tmp_path, raw, heads):
    names = ["c0003s0002t01", "c0003s0002t02", "c0005s0001t01"]
    for seed, name in enumerate(names):
        folder = tmp_path / "R1.2" / "any" / ("thing" if seed else "")
        grey, _, lesion = heads.head(seed)
        heads.write(folder / f"{name}_t1w_stx.nii", grey)
        heads.write(folder / f"{name}_LesionSmooth_stx.nii", (lesion > 0) * 0.5)
    write_masks(heads, tmp_path / "masks", names, "_t1w_stx_mask")
    assert convert(tmp_path / "R1.2", "--brain-masks", tmp_path / "masks") == 0
    cases = load(raw, "cases")
    assert list(cases) == names
    assert [cases[name]["subject"] for name in names] == ["c0003s0002", "c0003s0002", "c0005s0001"]
    assert [cases[name]["stratum"] for name in names] == ["C0003", "C0003", "C0005"]
    np.testing.assert_array_equal(heads.read(dataset(raw) / "lesionsTr" / f"{names[0]}.nii.gz"), heads.head(0)[2] > 0)


def test_20_with_its_testing_part_without_masks(tmp_path, raw, heads):
    release = tmp_path / "ATLAS_2"
    for seed, (part, site, subject) in enumerate(
        [("Training", "R001", "r001s001"), ("Training", "R002", "r002s001"), ("Testing", "R003", "r003s001")]
    ):
        grey, _, lesion = heads.head(seed)
        folder = release / part / site / f"sub-{subject}" / "ses-1" / "anat"
        heads.write(folder / f"sub-{subject}_ses-1_{SPACE}_T1w.nii.gz", grey)
        if part == "Training":
            heads.write(folder / f"sub-{subject}_ses-1_{SPACE}_label-L_desc-T1lesion_mask.nii.gz", lesion)
    template = heads.write(tmp_path / "mni_mask.nii.gz", heads.head(0)[1].astype(np.uint8))
    assert convert(release, "--brain-masks", template) == 0
    cases = load(raw, "cases")
    assert {case["sources"]["brain_mask"] for case in cases.values()} == {"mni_mask.nii.gz"}
    assert {name: case["role"] for name, case in cases.items()} == {
        "sub-r001s001_ses-1": "train",
        "sub-r002s001_ses-1": "train",
        "sub-r003s001_ses-1": "unlabelled",
    }
    assert cases["sub-r002s001_ses-1"]["stratum"] == "R002"
    assert (dataset(raw) / "imagesTs" / "sub-r003s001_ses-1_0000.nii.gz").is_file()
    brain = heads.read(dataset(raw) / "brainsTs" / "sub-r003s001_ses-1.nii.gz")
    np.testing.assert_array_equal(brain, heads.head(0)[1])
    assert not (dataset(raw) / "labelsTs").exists()


def spoil(path: Path, change) -> None:
    sitk.WriteImage(change(sitk.ReadImage(str(path))), str(path))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda scan: (scan / "031800_LesionSmooth_stx.nii.gz").unlink(), "it has no lesion file"),
        (lambda scan: (scan / "031800_t1w_deface_stx.nii.gz").unlink(), "one T1 image is needed; found: none"),
        (
            lambda scan: spoil(scan / "031800_LesionSmooth_stx.nii.gz", lambda image: image * 0),
            "its lesion files are empty",
        ),
        (
            lambda scan: spoil(scan / "031800_LesionSmooth_stx.nii.gz", lambda image: image[1:]),
            "lesion file 031800_LesionSmooth_stx.nii.gz lies up to",
        ),
    ],
)
def test_damaged_case_is_named_and_the_others_are_converted(release, masks, raw, damage, message):
    damage(scan(release, 2))
    assert convert(release, "--brain-masks", masks) == 1
    assert list(failed(raw)) == ["031800_t01"]
    assert message in failed(raw)["031800_t01"]
    assert load(raw, "dataset")["numTraining"] == 3


def test_one_empty_file_of_several_is_noted(release, masks, raw):
    spoil(scan(release, 0) / "031769_LesionSmooth_1_stx.nii.gz", lambda image: image * 0)
    assert convert(release, "--brain-masks", masks) == 0
    assert load(raw, "cases")["031769_t01"]["notes"] == ["its lesion file 031769_LesionSmooth_1_stx.nii.gz is empty"]


def test_lesion_outside_of_the_brain_mask_is_kept_in_label_and_image_and_noted(release, masks, raw, heads):
    brain = heads.head(0)[1].astype(np.uint8)
    brain[3, 4, 5] = 0
    heads.write(masks / "031769_t01.nii.gz", brain)
    assert convert(release, "--brain-masks", masks) == 0
    assert "1 voxels of lesion lie outside of the brain mask" in load(raw, "cases")["031769_t01"]["notes"][0]
    assert heads.read(dataset(raw) / "labelsTr" / "031769_t01.nii.gz")[3, 4, 5] == 2
    image = heads.read(dataset(raw) / "imagesTr" / "031769_t01_0000.nii.gz")
    assert image[3, 4, 5] == heads.head(0)[0][3, 4, 5] > 0


def one_voxel(image: sitk.Image) -> sitk.Image:
    image = image * 0
    image[5, 5, 5] = 1
    return image


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "found: none like 031800_t01.nii.gz"),
        (
            lambda path: (path.parent / "a").mkdir() or shutil.copy(path, path.parent / "a"),
            "found: 031800_t01.nii.gz, a/",
        ),
        (
            lambda path: shutil.copy(path, path.with_name("031800_t1w_deface_stx_mask.nii.gz")),
            "found: 031800_t01.nii.gz, 031800_t1w_deface_stx_mask.nii.gz",
        ),
        (
            lambda path: shutil.copy(path, path.with_name("031800_t01_brain_mask.nii.gz")),
            "found: 031800_t01.nii.gz, 031800_t01_brain_mask.nii.gz",
        ),
        (lambda path: spoil(path, lambda image: sitk.Mean(image * 100)), "has more than two values: it is no brain"),
        (lambda path: spoil(path, lambda image: image * 0), "its brain mask is empty"),
        (lambda path: spoil(path, lambda image: image * 0 + 1), "its brain mask is the whole image"),
        (lambda path: spoil(path, one_voxel), "its brain mask has 1.2 ml, and a brain 300 to 2500 ml (--brain-ml)"),
        (lambda path: spoil(path, lambda image: image[2:]), "brain mask 031800_t01.nii.gz lies up to"),
    ],
)
def test_case_without_a_usable_brain_mask_is_named(release, masks, raw, damage, message):
    damage(masks / "031800_t01.nii.gz")
    assert convert(release, "--brain-masks", masks) == 1
    assert list(failed(raw)) == ["031800_t01"]
    assert message in failed(raw)["031800_t01"]


def test_failed_case_is_mended_by_the_same_command(release, masks, raw):
    mask = masks / "031800_t01.nii.gz"
    content = mask.read_bytes()
    mask.unlink()
    assert convert(release, "--brain-masks", masks, "--validation", 1) == 1
    before = load(raw, "roles"), (dataset(raw) / "labelsTr" / "031801_t01.nii.gz").stat().st_mtime_ns
    mask.write_bytes(content)
    assert convert(release, "--brain-masks", masks, "--validation", 1) == 0
    assert (load(raw, "roles"), (dataset(raw) / "labelsTr" / "031801_t01.nii.gz").stat().st_mtime_ns) == before


def test_case_whose_sources_changed_is_converted_again_and_it_alone(release, masks, raw, heads, capsys):
    assert convert(release, "--brain-masks", masks) == 0
    written = {name: (dataset(raw) / "labelsTr" / f"{name}.nii.gz").stat().st_mtime_ns for name in CASES_11}
    brain = heads.head(2)[1].astype(np.uint8)
    brain[4, 8, 8] = 0
    heads.write(masks / "031800_t01.nii.gz", brain)
    (scan(release, 3) / "031801_LesionSmooth_stx.nii.gz").unlink()
    assert convert(release, "--brain-masks", masks) == 1
    assert "1 cases converted now, 2 kept from before." in capsys.readouterr().out
    assert failed(raw) == {"031801_t01": "it has no lesion file"}
    assert not list(dataset(raw).glob("*Tr/031801_t01*"))
    image = heads.read(dataset(raw) / "imagesTr" / "031800_t01_0000.nii.gz")
    assert image[4, 8, 8] == 0 < heads.head(2)[0][4, 8, 8]
    for name in CASES_11[:2]:
        assert (dataset(raw) / "labelsTr" / f"{name}.nii.gz").stat().st_mtime_ns == written[name]
    assert "made_from" not in load(raw, "cases")["031769_t01"]


def test_mask_that_could_be_of_two_visits_is_refused(release, tmp_path, raw, heads):
    write_masks(heads, tmp_path / "masks", ["031769", "031800", "031801"], "_t1w_deface_stx_mask")
    assert convert(release, "--brain-masks", tmp_path / "masks") == 1
    assert list(failed(raw)) == ["031769_t01", "031769_t02"]
    assert "could be of 2 cases; name it 031769_t01.nii.gz" in failed(raw)["031769_t01"]


def test_hd_bet_makes_masks(release, raw, heads, fake_hd_bet):
    grey, _, _ = heads.head(3)
    grey[0, -1, -1] = 7  # the first voxel in LPS, on which the stand-in for HD-BET fails
    heads.write(scan(release, 3) / "031801_t1w_deface_stx.nii.gz", grey)
    assert convert(release, "--hd-bet", "cpu") == 1
    assert list(failed(raw)) == ["031801_t01"]
    assert "hd-bet failed with exit code 1: no brain here" in failed(raw)["031801_t01"]
    assert fake_hd_bet.read_text().split() == ["cpu"] * 4
    grey, brain, _ = heads.head(0)
    np.testing.assert_array_equal(heads.read(dataset(raw) / "labelsTr" / "031769_t01.nii.gz") > 0, brain)
    np.testing.assert_array_equal(heads.read(dataset(raw) / "imagesTr" / "031769_t01_0000.nii.gz"), grey * brain)


def test_hd_bet_without_its_network_is_refused_before_it_downloads(release, raw, fake_hd_bet, tmp_path, capsys):
    (tmp_path / "hd-bet_params" / "release_2.0.0" / "fold_all" / "checkpoint_final.pth").unlink()
    assert convert(release, "--hd-bet", "cpu") == 2
    assert "would download it now" in capsys.readouterr().err
    assert not fake_hd_bet.exists()


def test_brain_must_come_from_somewhere(release, raw, capsys):
    with pytest.raises(SystemExit):
        convert(release)
    assert "one of the arguments --brain-masks --hd-bet --stripped is required" in capsys.readouterr().err


def test_folder_of_no_release_or_of_two_is_refused(release, masks, raw, heads, tmp_path, capsys):
    assert convert(masks, "--brain-masks", masks) == 2
    assert "has no T1 image of ATLAS" in capsys.readouterr().err
    heads.write(release / "c0003s0002t01_t1w_stx.nii.gz", heads.head(0)[0])
    assert convert(release, "--brain-masks", masks) == 2
    assert "images of the releases R1.1, R1.2" in capsys.readouterr().err
    assert convert(tmp_path / "nowhere", "--brain-masks", masks) == 2
    assert "does not exist" in capsys.readouterr().err
