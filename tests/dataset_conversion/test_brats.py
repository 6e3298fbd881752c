"""The BraTS converter on tiny trees of every release, with their quirks and with damage."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_anomaly.cli.main import main
from nnunet_anomaly.dataset_conversion.brats import describe, list_cases
from nnunet_anomaly.dataset_roles import roi_labels

OLD = {"t1": "_t1", "t1ce": "_t1ce", "t2": "_t2", "flair": "_flair", "seg": "_seg"}
NEW = {"t1": "-t1n", "t1ce": "-t1c", "t2": "-t2w", "flair": "-t2f", "seg": "-seg"}
NAMES_2020 = [f"BraTS20_Training_{number:03d}" for number in (1, 2, 3, 4, 355)]
MAPPING = """\
Grade,BraTS_2017_subject_ID,BraTS_2018_subject_ID,TCGA_TCIA_subject_ID,BraTS_2019_subject_ID,BraTS_2020_subject_ID
HGG,Brats17_CBICA_AAB_1,Brats18_CBICA_AAB_1,NA,BraTS19_CBICA_AAB_1,BraTS20_Training_001
HGG,NA,NA,NA,BraTS19_TMC_0629_1,BraTS20_Training_002
LGG,Brats17_TCIA_131_1,Brats18_TCIA01_131_1,TCGA-1,NA,BraTS20_Training_003
LGG,NA,NA,NA,NA,BraTS20_Training_004
"""
VALUE = {"t1": 0, "t1ce": 1000, "t2": 2000, "flair": 3000}  # added to the brain, so that files are told apart


def write_case(heads, folder: Path, seed: int, suffixes=OLD, ending=".nii.gz", labels=(1, 2, 4), seg=True) -> None:
    """One case: the folder's name begins its files' names; the seg has these labels."""
    grey, brain, lesion = heads.head(seed)
    for sequence, offset in VALUE.items():
        image = np.where(brain, grey + offset, 0).astype(np.int16)
        image[4, 8, 8] = 0  # a hole in the brain, of dark fluid
        heads.write(folder / f"{folder.name}{suffixes[sequence]}{ending}", image)
    if seg:
        array = np.array([0, *labels], np.uint8)[lesion]
        heads.write(folder / f"{folder.name}{suffixes['seg']}{ending}", array)


@pytest.fixture
def release(tmp_path, heads) -> Path:
    """BraTS 2020: five training cases, the seg of the last with its odd name, and two validation cases."""
    training = tmp_path / "BraTS2020" / "MICCAI_BraTS2020_TrainingData"
    for seed, name in enumerate(NAMES_2020):
        write_case(heads, training / name, seed, ending=".nii")
    folder = training / NAMES_2020[-1]
    (folder / f"{NAMES_2020[-1]}_seg.nii").rename(folder / "W39_1998.09.19_Segm.nii")
    (training / "name_mapping.csv").write_text(MAPPING)
    (training / "._name_mapping.csv").write_bytes(b"\xff a copy by macOS")
    for number in (1, 2):
        folder = tmp_path / "BraTS2020" / "MICCAI_BraTS2020_ValidationData" / f"BraTS20_Validation_{number:03d}"
        write_case(heads, folder, 20 + number, ending=".nii", seg=False)
    return tmp_path / "BraTS2020"


def convert(release: Path, *options: str) -> int:
    return main(["convert", "brats", str(release), "-d", "301", "-np", "1", *options])


def dataset(raw: Path) -> Path:
    return raw / "Dataset301_BraTS"


def load(raw: Path, name: str):
    return json.loads((dataset(raw) / f"{name}.json").read_text())


def names_in(folder: Path) -> list[str]:
    return sorted(path.name.removesuffix(".nii.gz") for path in folder.glob("*"))


def test_2020_is_converted(release, raw, heads):
    assert convert(release) == 0
    folder = dataset(raw)
    for seed, name in enumerate(NAMES_2020):
        grey, brain, lesion = heads.head(seed)
        for channel, offset in enumerate(VALUE.values()):
            image = np.where(brain, grey + offset, 0)
            image[4, 8, 8] = 0
            written = folder / "imagesTr" / f"{name}_{channel:04d}.nii.gz"
            np.testing.assert_array_equal(heads.read(written), image)
            geometry = sitk.ReadImage(str(written))
            assert geometry.GetDirection() == (1, 0, 0, 0, 1, 0, 0, 0, 1)
            np.testing.assert_allclose(geometry.GetSpacing(), (8, 10, 15))
        expected = np.where(lesion > 0, 2, brain)  # the hole is filled
        np.testing.assert_array_equal(heads.read(folder / "labelsTr" / f"{name}.nii.gz"), expected)
        np.testing.assert_array_equal(heads.read(folder / "lesionsTr" / f"{name}.nii.gz"), lesion > 0)
    content = load(raw, "dataset")
    assert content["labels"] == {"background": 0, "brain": 1, "lesion": 2}
    assert content["channel_names"] == {"0": "T1", "1": "T1ce", "2": "T2", "3": "FLAIR"}
    assert content["release"] == "2020"
    assert roi_labels(content) == (1, 2)


def test_odd_seg_of_case_355_is_taken_and_noted(release, raw):
    assert convert(release) == 0
    assert load(raw, "cases")[NAMES_2020[-1]]["notes"] == ["its seg is named W39_1998.09.19_Segm.nii"]
    assert load(raw, "cases")[NAMES_2020[0]]["notes"] == []


def test_name_mapping_tells_grade_and_institution(release, raw, capsys):
    options = ("--validation", "2")
    assert convert(release, *options) == 0
    cases = load(raw, "cases")
    strata = ["HGG CBICA", "HGG TMC", "LGG TCIA01", "LGG", None]
    assert [cases[name]["stratum"] for name in NAMES_2020] == strata
    assert cases[NAMES_2020[3]]["grade"] == "LGG"
    mapping = release / "MICCAI_BraTS2020_TrainingData" / "name_mapping.csv"
    mapping.write_text(MAPPING.replace("2020_subject", "2099_subject"))  # of another release
    assert convert(release, *options, "--name", "Other", "-d", "399") == 0
    assert json.loads((raw / "Dataset399_Other" / "cases.json").read_text())[NAMES_2020[0]]["stratum"] is None
    mapping.write_bytes(b"\xff\xfe\x00")
    assert convert(release, "--name", "Third", "-d", "398") == 2
    assert "name_mapping.csv is not readable as CSV" in capsys.readouterr().err


def test_table_of_strata_needs_no_rows_for_cases_that_are_never_drawn(release, raw, tmp_path, capsys):
    table = tmp_path / "scanners.csv"
    table.write_text("case,stratum\n" + "".join(f"{name},GE\n" for name in NAMES_2020))
    assert convert(release, "--strata", str(table)) == 0
    assert load(raw, "roles")["strata"] == {"GE": {"train": 5}, "unknown": {"unlabelled": 2}}
    table.write_text(f"case,stratum\n{NAMES_2020[0]},GE\n")
    assert convert(release, "--strata", str(table)) == 2
    assert f"has no row for {NAMES_2020[1]}, " in capsys.readouterr().err


def test_no_other_file_is_taken_for_a_seg(release, raw):
    training = release / "MICCAI_BraTS2020_TrainingData"
    wrong = training / NAMES_2020[0] / f"{NAMES_2020[1]}_seg.nii"  # of another case
    (training / NAMES_2020[0] / f"{NAMES_2020[0]}_seg.nii").rename(wrong)
    (training / NAMES_2020[2] / f"{NAMES_2020[2]}_seg.nii").rename(training / NAMES_2020[2] / "W39_1998.09.19_Segm.nii")
    validation = release / "MICCAI_BraTS2020_ValidationData" / "BraTS20_Validation_001"
    for name in (f"{validation.name}_mymodel_seg.nii", "W39_1998.09.19_Segm.nii"):
        (validation / name).write_bytes(wrong.read_bytes())
    assert convert(release) == 1
    assert list(load(raw, "integrity_report")["failed"]) == [NAMES_2020[0], NAMES_2020[2]]
    assert "one seg file is needed; found: none" in load(raw, "integrity_report")["failed"][NAMES_2020[0]]
    assert load(raw, "cases")[validation.name]["role"] == "unlabelled"
    assert not (dataset(raw) / "labelsTs").exists()


def test_validation_cases_without_seg_go_to_images_ts_with_their_brain(release, raw, heads):
    assert convert(release) == 0
    names = ["BraTS20_Validation_001", "BraTS20_Validation_002"]
    assert names_in(dataset(raw) / "imagesTs") == [f"{name}_{c:04d}" for name in names for c in range(4)]
    assert names_in(dataset(raw) / "brainsTs") == names
    np.testing.assert_array_equal(heads.read(dataset(raw) / "brainsTs" / f"{names[0]}.nii.gz"), heads.head(21)[1])
    assert not (dataset(raw) / "labelsTs").exists()
    assert load(raw, "roles")["cases"][names[0]]["role"] == "unlabelled"
    assert all(names[0] not in split["train"] + split["val"] for split in load(raw, "splits_final"))


def test_2019_with_grades_sites_visits_and_both_endings(tmp_path, raw, heads):
    names = ["HGG/BraTS19_2013_2_1", "HGG/BraTS19_CBICA_AAB_1", "LGG/BraTS19_TCIA01_131_1", "LGG/BraTS19_TMC_0629_1"]
    release = tmp_path / "MICCAI_BraTS_2019_Data_Training"
    for seed, name in enumerate([*names, "LGG/BraTS19_TMC_0629_2"]):
        write_case(heads, release / name, seed, ending=".nii" if seed % 2 else ".nii.gz")
    (release / "HGG" / "BraTS19_2013_2_1" / "._BraTS19_2013_2_1_t1.nii.gz").write_bytes(b"a copy by macOS")
    assert convert(release, "--sequences", "t1ce", "t1") == 0
    image = heads.read(dataset(raw) / "imagesTr" / "BraTS19_2013_2_1_0001.nii.gz")
    assert 0 < image.max() < 1000  # t1, not t1ce
    assert load(raw, "dataset")["channel_names"] == {"0": "T1ce", "1": "T1"}
    cases = load(raw, "cases")
    assert cases["BraTS19_TCIA01_131_1"]["grade"] == "LGG"
    assert cases["BraTS19_TCIA01_131_1"]["stratum"] == "LGG TCIA01"
    assert cases["BraTS19_CBICA_AAB_1"]["visit"] == "1"
    assert cases["BraTS19_TMC_0629_1"]["subject"] == cases["BraTS19_TMC_0629_2"]["subject"] == "BraTS19_TMC_0629"
    splits = load(raw, "splits_final")
    assert len(splits) == 4
    for split in splits:
        assert len({"BraTS19_TMC_0629_1", "BraTS19_TMC_0629_2"} & set(split["val"])) in (0, 2)


def test_2021_with_one_more_folder_as_regions_that_nnunet_accepts(tmp_path, raw, heads, capsys):
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    release = tmp_path / "RSNA_ASNR_MICCAI_BraTS2021_TrainingData_16July2021"
    for number in range(2):
        write_case(heads, release / "TrainingData" / f"BraTS2021_{number:05d}", number)
    write_case(heads, release / "TrainingData" / "BraTS2021_00002" / "BraTS2021_00002", 2)
    assert convert(release, "--target", "regions") == 0
    capsys.readouterr()
    verify_dataset_integrity(str(dataset(raw)), 1)
    said = capsys.readouterr().out
    assert "Done" in said and "WARNING" not in said and "Error" not in said
    _, brain, lesion = heads.head(2)
    label = heads.read(dataset(raw) / "labelsTr" / "BraTS2021_00002.nii.gz")
    np.testing.assert_array_equal(label, np.where(lesion > 0, lesion + 1, brain))  # 4 of the release is 3, and + 1
    content = load(raw, "dataset")
    assert content["labels"] == {
        "background": 0,
        "brain": [1, 2, 3, 4],
        "whole_tumor": [2, 3, 4],
        "tumor_core": [2, 4],
        "enhancing_tumor": [4],
    }
    assert roi_labels(content) == (1, 2, 3, 4)
    np.testing.assert_array_equal(heads.read(dataset(raw) / "lesionsTr" / "BraTS2021_00002.nii.gz"), lesion > 0)


@pytest.mark.parametrize("year", ["2021", "2024"])
def test_regions_are_ones_that_nnunet_can_learn_and_write(year):
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    what = describe(year, ["t1"], "regions")
    manager = LabelManager({"background": 0, **what.regions}, what.regions_class_order)
    values = sorted(set(what.labels.values()) - {0})
    for value in values:  # a voxel that is in just the regions that hold its value is written as that value
        inside = np.array(
            [value in ([region] if isinstance(region, int) else region) for region in manager.all_regions]
        )
        segmentation = manager.convert_probabilities_to_segmentation(inside.astype(np.float32).reshape(-1, 1, 1, 1))
        assert segmentation.item() == value


def gli(heads, folder: Path, labels, visits=("000", "001")) -> None:
    for number in range(3):
        for visit in visits if number == 0 else visits[:1]:
            write_case(heads, folder / f"BraTS-GLI-{number:05d}-{visit}", number, NEW, labels=labels)


def test_2023_keeps_visits_of_a_subject_in_one_fold(tmp_path, raw, heads):
    release = tmp_path / "ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData"
    gli(heads, release, (1, 2, 3))
    assert convert(release, "--target", "regions") == 0
    lesion = heads.head(0)[2]
    label = heads.read(dataset(raw) / "labelsTr" / "BraTS-GLI-00000-000.nii.gz")
    np.testing.assert_array_equal(label[lesion > 0], lesion[lesion > 0] + 1)
    assert load(raw, "cases")["BraTS-GLI-00000-001"]["subject"] == "BraTS-GLI-00000"
    for split in load(raw, "splits_final"):
        assert len({"BraTS-GLI-00000-000", "BraTS-GLI-00000-001"} & set(split["val"])) in (0, 2)


def test_2024_keeps_label_4_the_resection_cavity(tmp_path, raw, heads):
    release = tmp_path / "BraTS2024-BraTS-GLI-TrainingData" / "training_data1_v2"
    gli(heads, release, (1, 3, 4), visits=("100", "101"))
    assert convert(release, "--target", "regions") == 0  # the year is in the name of the folder above
    label = heads.read(dataset(raw) / "labelsTr" / "BraTS-GLI-00000-100.nii.gz")
    np.testing.assert_array_equal(np.unique(label), [0, 1, 2, 4, 5])
    assert load(raw, "dataset")["labels"]["whole_tumor"] == [2, 3, 4]
    assert load(raw, "dataset")["labels"]["resection_cavity"] == [5]
    assert load(raw, "dataset")["regions_class_order"] == [1, 3, 2, 4, 5]


@pytest.mark.parametrize("folder", ["glioma", "download_2023", "BraTS-2024-03-01", "BraTS2023 and BraTS2024"])
def test_gli_of_an_unknown_year_needs_the_option(tmp_path, raw, heads, capsys, folder):
    gli(heads, tmp_path / folder, (1, 2, 4))
    assert convert(tmp_path / folder) == 2
    said = capsys.readouterr().err
    assert "Give --year 2023 or --year 2024" in said
    assert ("names of folders say both (BraTS2023 and BraTS2024)" in said) == ("and" in folder)
    assert ("no folder is named as BraTS2023" in said) == ("and" not in folder)
    assert convert(tmp_path / folder, "--year", "2023") == 1
    failed = load(raw, "integrity_report")["failed"]
    assert "has label 4; this release of BraTS has 1, 2, 3. Is it another release" in failed["BraTS-GLI-00000-000"]


def test_a_year_against_the_name_of_the_folder_is_refused(tmp_path, raw, heads, capsys):
    gli(heads, tmp_path / "BraTS2023_MICCAI" / "TrainingData", (1, 2, 3))
    for inner in ("", "TrainingData"):
        assert convert(tmp_path / "BraTS2023_MICCAI" / inner, "--year", "2024") == 2
        assert "--year is 2024, but a folder's name says 2023: BraTS2023_MICCAI." in capsys.readouterr().err
    assert convert(tmp_path / "BraTS2023_MICCAI", "--year", "2023") == 0


def test_the_nearest_folder_that_is_named_for_a_year_counts(tmp_path, heads):
    release = tmp_path / "BraTS2024 and others" / "BraTS2023_MICCAI" / "parts" / "TrainingData"
    gli(heads, release, (1, 2, 3))
    assert list_cases(release, ["t1"], None)[0] == "2023"
    gli(heads, release / "BraTS2024-GLI", (1, 2, 3), visits=("101",))
    assert list_cases(release, ["t1"], None)[0] == "2024"


def spoil(path: Path, change) -> None:
    sitk.WriteImage(change(sitk.ReadImage(str(path))), str(path))


def moved(image: sitk.Image) -> sitk.Image:
    image.SetOrigin((0, 239, 3))
    return image


def with_nan(image: sitk.Image) -> sitk.Image:
    image = sitk.Cast(image, sitk.sitkFloat32)
    image[3, 3, 3] = float("nan")
    return image


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("_t2", Path.unlink, "one t2 file is needed; found: none"),
        ("_seg", Path.unlink, "one seg file is needed; found: none"),
        (
            "_flair",
            lambda p: p.with_suffix(".nii.gz").write_bytes(p.read_bytes()),
            "one flair file is needed; found: M",
        ),
        ("_t1", lambda path: os.truncate(path, 900), "is cut off or damaged"),
        ("_t1", lambda path: spoil(path, with_nan), "holds NaN or infinity"),
        (
            "_t1",
            lambda path: spoil(path, lambda image: image[:-1]),
            "the T1ce image BraTS20_Training_002_t1ce.nii lies",
        ),
        ("_seg", lambda path: spoil(path, lambda image: image[:-1]), "seg BraTS20_Training_002_seg.nii lies up to"),
        ("_seg", lambda path: spoil(path, moved), "lies up to 3 mm off"),
        ("_seg", lambda path: spoil(path, lambda image: image * 0), "its lesion files are empty"),
        ("_seg", lambda path: spoil(path, lambda image: image * 3), "has label 3; this release of BraTS has 1, 2, 4"),
        ("_seg", lambda path: spoil(path, lambda image: sitk.Cast(image, sitk.sitkFloat32) * 0.5), "has label 0.5"),
    ],
)
def test_damaged_case_is_named_and_the_others_are_converted(release, raw, file, damage, message):
    name = NAMES_2020[1]
    damage(release / "MICCAI_BraTS2020_TrainingData" / name / f"{name}{file}.nii")
    assert convert(release) == 1
    failed = load(raw, "integrity_report")["failed"]
    assert list(failed) == [name]
    assert message in failed[name]
    assert load(raw, "dataset")["numTraining"] == 4
    assert not list(dataset(raw).glob(f"*/{name}*"))
    assert load(raw, "roles")["cases"][name]["role"] == "train"  # still named there


def test_sequence_that_is_not_asked_for_may_be_missing(release, raw):
    name = NAMES_2020[1]
    (release / "MICCAI_BraTS2020_TrainingData" / name / f"{name}_t2.nii").unlink()
    assert convert(release, "--sequences", "t1") == 0


def test_empty_lesions_are_taken_on_request(release, raw, heads):
    name = NAMES_2020[1]
    spoil(release / "MICCAI_BraTS2020_TrainingData" / name / f"{name}_seg.nii", lambda image: image * 0)
    assert convert(release) == 1
    assert "take such cases by --allow-empty" in load(raw, "integrity_report")["failed"][name]
    assert convert(release, "--allow-empty") == 0  # goes on
    assert load(raw, "cases")[name]["notes"] == ["it has no lesion"]
    assert not heads.read(dataset(raw) / "lesionsTr" / f"{name}.nii.gz").any()


def test_files_in_another_order_of_axes_are_brought_over_exactly(release, raw, heads):
    name = NAMES_2020[0]
    folder = release / "MICCAI_BraTS2020_TrainingData" / name
    for file in ("t2", "seg"):
        spoil(folder / f"{name}_{file}.nii", lambda image: sitk.DICOMOrient(image, "PIR"))
    assert convert(release) == 0
    grey, brain, lesion = heads.head(0)
    np.testing.assert_array_equal(heads.read(dataset(raw) / "lesionsTr" / f"{name}.nii.gz"), lesion > 0)
    t2 = np.where(brain, grey + 2000, 0)
    t2[4, 8, 8] = 0
    np.testing.assert_array_equal(heads.read(dataset(raw) / "imagesTr" / f"{name}_0002.nii.gz"), t2)


def test_image_with_a_fourth_axis_of_one_is_read(release, raw, heads):
    name = NAMES_2020[0]
    path = release / "MICCAI_BraTS2020_TrainingData" / name / f"{name}_t1.nii"
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(image.get_fdata().astype(np.int16)[..., None], image.affine), path)
    assert nibabel.load(path).ndim == 4
    assert convert(release) == 0
    assert heads.read(dataset(raw) / "imagesTr" / f"{name}_0000.nii.gz").shape == (10, 12, 14)


def test_image_that_is_not_skull_stripped_is_named(release, raw):
    name = NAMES_2020[0]
    spoil(release / "MICCAI_BraTS2020_TrainingData" / name / f"{name}_t1.nii", lambda image: image + 1)
    assert convert(release) == 1
    assert "Is it skull-stripped? If not, give masks" in load(raw, "integrity_report")["failed"][name]


def test_roles_are_drawn_and_masks_lie_apart(release, raw):
    options = ("--validation", "2", "--test", "1", "--seed", "3")
    assert convert(release, *options) == 0
    roles = load(raw, "roles")
    of = {role: sorted(n for n, case in roles["cases"].items() if case["role"] == role) for role in roles["numbers"]}
    assert {role: len(names) for role, names in of.items()} == {
        "train": 2,
        "validation": 2,
        "test": 1,
        "unlabelled": 2,
    }
    assert roles["seed"] == 3
    for role, folder in (("train", "lesionsTr"), ("validation", "lesionsVal"), ("test", "lesionsTs")):
        assert names_in(dataset(raw) / folder) == of[role]
    assert names_in(dataset(raw) / "labelsTs") == of["test"]
    assert load(raw, "splits_final") == [{"train": of["train"], "val": of["validation"]}]
    assert load(raw, "cases")[of["test"][0]]["role"] == "test"
    for lesions, part in (("lesionsVal", "Tr"), ("lesionsTs", "Ts")):  # the folders are what evaluate-anomaly takes
        arguments = ["-ref", lesions, "-pred", f"images{part}", "--channel", "0", "-m", f"labels{part}", "-o", "out"]
        paths = [str(dataset(raw) / word) if word[0] in "lio" else word for word in arguments]
        assert main(["evaluate-anomaly", *paths, "-np", "1"]) == 0
    assert convert(release, *options) == 0  # goes on
    assert convert(release, "--validation", "1", "--test", "1", "--seed", "3") == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--test", "6"), "--test is 6; there are 5 cases to draw from"),
        (("--test", "5"), "no case is left for imagesTr"),
        (("--test", "2", "--test-list", "x.txt"), "give one of the two"),
        (("--sequences", "t1", "t1"), "--sequences names one twice"),
        (("--year", "2024"), "named as in BraTS 2020"),
        (("--keep-skull",), "--keep-skull needs --brain-masks"),
        (("--n4", "0"), "--n4 is 0"),
        (("--brain-masks", "nowhere"), "nowhere does not exist"),
        (("--hd-bet", "cpu"), "there is no command hd-bet here"),
    ],
)
def test_options_that_cannot_be(release, raw, options, message, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert convert(release, *options) == 2
    assert message in capsys.readouterr().err
    assert not dataset(raw).exists()


def test_validation_part_alone_is_refused(release, raw, capsys):
    assert convert(release / "MICCAI_BraTS2020_ValidationData") == 2
    assert "give the folder that holds the training part" in capsys.readouterr().err


def test_folder_of_no_release_or_of_two_is_refused(release, raw, capsys, heads):
    assert convert(release.parent / "nowhere") == 2
    assert "does not exist" in capsys.readouterr().err
    assert convert(release / "MICCAI_BraTS2020_TrainingData" / NAMES_2020[0] / "..") == 0
    (release.parent / "none").mkdir()
    assert convert(release.parent / "none") == 2
    assert "has no case folder of BraTS" in capsys.readouterr().err
    write_case(heads, release / "BraTS2021_00000", 0)
    assert convert(release) == 2
    assert "cases of more than one release of BraTS: 2020, 2021" in capsys.readouterr().err


def test_case_in_two_places_is_named(release, raw):
    source = release / "MICCAI_BraTS2020_TrainingData" / NAMES_2020[0]
    twin = release / "copy" / NAMES_2020[0]
    twin.mkdir(parents=True)
    for path in source.iterdir():
        (twin / path.name).write_bytes(path.read_bytes())
    assert convert(release) == 1
    assert "one t1 file is needed; found: MICCAI" in load(raw, "integrity_report")["failed"][NAMES_2020[0]]


def test_two_processes_write_the_same(release, raw):
    assert convert(release) == 0
    arguments = ["convert", "brats", str(release), "-d", "302", "-np", "2"]
    assert main(arguments) == 0
    for path in sorted(dataset(raw).glob("*Tr/*")):
        other = raw / "Dataset302_BraTS" / path.relative_to(dataset(raw))
        assert other.read_bytes() == path.read_bytes()
