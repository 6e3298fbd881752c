"""The converter of healthy heads: names of IXI, OASIS and BIDS, strata, brain masks, N4 and denoising."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from nnunet_anomaly.cli.main import main
from nnunet_anomaly.dataset_conversion.brain import BrainOptions, n4_corrected, prepared
from nnunet_anomaly.dataset_conversion.healthy import check_visits, list_cases
from nnunet_anomaly.errors import InputError

IXI = ["IXI002-Guys-0828-T1", "IXI012-HH-1211-T1", "IXI013-HH-1212-T1", "IXI014-IOP-0001-T1", "IXI015-Guys-0900-T1"]


@pytest.fixture
def release(tmp_path, heads) -> Path:
    """IXI: flat, T1 and one T2 image."""
    for seed, name in enumerate(IXI):
        heads.write(tmp_path / "IXI" / f"{name}.nii.gz", heads.head(seed)[0])
    heads.write(tmp_path / "IXI" / "IXI002-Guys-0828-T2.nii.gz", heads.head(0)[0])
    return tmp_path / "IXI"


@pytest.fixture
def masks(tmp_path, heads) -> Path:
    for seed, name in enumerate(IXI):
        heads.write(tmp_path / "masks" / f"{name}_bet.nii.gz", heads.head(seed)[1].astype(np.uint8))
    return tmp_path / "masks"


def convert(release: Path, *options) -> int:
    return main(["convert", "healthy", str(release), "-d", "300", "-np", "1", *map(str, options)])


def dataset(raw: Path) -> Path:
    return raw / "Dataset300_Healthy"


def load(raw: Path, name: str):
    return json.loads((dataset(raw) / f"{name}.json").read_text())


def test_ixi_is_converted_to_what_nnunet_accepts(release, masks, raw, heads, capsys):
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    assert convert(release, "--pattern", "*-T1.nii.gz", "--brain-masks", masks) == 0
    for seed, name in enumerate(IXI):
        grey, brain, _ = heads.head(seed)
        image = heads.read(dataset(raw) / "imagesTr" / f"{name}_0000.nii.gz")
        np.testing.assert_array_equal(image, np.where(brain, grey, 0))
        np.testing.assert_array_equal(heads.read(dataset(raw) / "labelsTr" / f"{name}.nii.gz"), brain)
    content = load(raw, "dataset")
    assert content["labels"] == {"background": 0, "brain": 1}
    assert content["anomaly"]["roi_labels"] == ["brain"]
    cases = load(raw, "cases")
    assert [cases[name]["stratum"] for name in IXI] == ["Guys", "HH", "HH", "IOP", "Guys"]
    assert cases[IXI[0]]["subject"] == "IXI002"
    assert len(load(raw, "splits_final")) == 5
    capsys.readouterr()
    verify_dataset_integrity(str(dataset(raw)), 1)
    said = capsys.readouterr().out
    assert "Done" in said and "WARNING" not in said and "Error" not in said


def test_validation_cases_are_the_one_fold(release, masks, raw):
    options = ("--pattern", "*-T1*", "--brain-masks", masks, "--validation", 2, "--test", 1, "--seed", 4)
    assert convert(release, *options) == 0
    (split,) = load(raw, "splits_final")
    roles = load(raw, "roles")
    assert [len(split["train"]), len(split["val"])] == [2, 2]
    assert {roles["cases"][name]["role"] for name in split["val"]} == {"validation"}
    assert len(list((dataset(raw) / "imagesTs").iterdir())) == len(list((dataset(raw) / "labelsTs").iterdir())) == 1


def test_strata_from_a_table(release, masks, raw, tmp_path):
    table = tmp_path / "scanners.csv"
    table.write_text("case,stratum\n" + "".join(f"{name[:6]},{'GE' if i < 2 else 'X'}\n" for i, name in enumerate(IXI)))
    options = ("--pattern", "*-T1*", "--brain-masks", masks, "--strata", table, "--validation", 2)
    assert convert(release, *options) == 0
    assert load(raw, "roles")["strata"]["GE"] == {"train": 1, "validation": 1}
    assert load(raw, "roles")["strata"]["X"] == {"train": 2, "validation": 1}


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("IXI002-Guys-0828-T1.nii.gz", ("IXI002-Guys-0828-T1", "IXI002", None, "Guys")),
        ("disc1/OAS1_0001_MR1/T88.nii", ("T88", "OAS1_0001", "MR1", None)),
        ("OAS2_0001_MR2_mpr-1.nii.gz", ("OAS2_0001_MR2_mpr-1", "OAS2_0001", "MR2", None)),
        ("OAS30001_MR_d0129/anat2/T1w.nii.gz", ("T1w", "OAS30001", "d0129", None)),
        ("sub-OAS30001_ses-d0129_T1w.nii.gz", ("sub-OAS30001_ses-d0129_T1w", "OAS30001", "d0129", None)),
        (
            "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz",
            ("sub-01_ses-1_T1w", "sub-01", "ses-1", None),
        ),
        ("sub-02/ses-2/anat/T1w.nii.gz", ("T1w", "sub-02", "ses-2", None)),
        ("some where/a head.nii", ("a_head", "a_head", None, None)),
    ],
)
def test_names_tell_subject_visit_and_site(tmp_path, file, expected):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).touch()
    (case,) = list_cases(tmp_path, "*", None)
    assert (case.case_id, case.subject, case.visit, case.stratum) == expected


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for name in ("a/T1.nii.gz", "b/T1.nii.gz", "b/T2.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [case.case_id for case in list_cases(tmp_path, "*", None)] == ["a_T1", "b_T1", "T2"]


def test_subjects_by_a_table_share_a_fold_and_without_it_a_warning_is_given(tmp_path, raw, heads, capsys):
    for seed in range(3):
        grey, brain, _ = heads.head(seed)
        for visit in ("baseline", "followup"):
            heads.write(tmp_path / "in" / f"patient{seed}" / visit / "T1.nii.gz", np.where(brain, grey, 0))
    assert convert(tmp_path / "in", "--stripped") == 0
    assert "patient0 (2), patient1 (2), patient2 (2)). If some are of one person" in capsys.readouterr().err
    table = tmp_path / "subjects.csv"
    rows = [f"patient{seed}_{visit}_T1,patient{seed}\n" for seed in range(3) for visit in ("baseline", "followup")]
    table.write_text("case,subject\n" + "".join(rows))
    assert convert(tmp_path / "in", "--stripped", "--strata", table) == 0
    assert "one person" not in capsys.readouterr().err
    for split in load(raw, "splits_final"):
        assert not {name[:8] for name in split["train"]} & {name[:8] for name in split["val"]}
    assert load(raw, "cases")["patient1_baseline_T1"]["subject"] == "patient1"


def test_a_table_tells_people_apart_whose_names_are_alike(tmp_path, raw, heads, capsys):
    for seed, site in enumerate(("site_a", "site_b")):
        grey, brain, _ = heads.head(seed)
        heads.write(tmp_path / "in" / site / "sub-01" / "anat" / "sub-01_T1w.nii.gz", np.where(brain, grey, 0))
    assert convert(tmp_path / "in", "--stripped") == 2
    assert "same visit" in (said := capsys.readouterr().err) and "column subject of a table" in said
    table = tmp_path / "subjects.csv"
    names = [f"site_{letter}_sub-01_anat_sub-01_T1w" for letter in "ab"]
    table.write_text(f"case,subject\n{names[0]},A1\n{names[1]},B1\n")
    assert convert(tmp_path / "in", "--stripped", "--strata", table) == 0
    assert {case["subject"] for case in load(raw, "cases").values()} == {"A1", "B1"}


def test_a_table_of_subjects_does_not_make_two_sequences_of_a_visit_two_cases(tmp_path, raw, capsys):
    for person, session in (("sub-01", "ses-1"), ("sub-01", "ses-2"), ("sub-02", "ses-1")):
        for sequence in ("T1w", "T2w"):
            path = tmp_path / "in" / person / session / "anat" / f"{person}_{session}_{sequence}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    table = tmp_path / "subjects.csv"
    table.write_text("case,subject\nsub-01,A\nsub-02,B\n")
    assert convert(tmp_path / "in", "--stripped", "--strata", table) == 2
    said = capsys.readouterr().err
    assert "more than one image of the same visit" in said and "sub-02_ses-1_T1w, sub-02_ses-1_T2w" in said
    # one sequence of two visits, and two people of one name, are no such thing
    cases = list_cases(tmp_path / "in", "sub-01*T1w.nii.gz", None)
    check_visits([replace(case, subject="A") for case in cases], cases, tmp_path)
    cases = list_cases(tmp_path / "in", "sub-01_ses-1*", None)
    check_visits([replace(case, subject=subject) for case, subject in zip(cases, "AB", strict=True)], cases, tmp_path)


def test_files_whose_names_tell_no_subject_are_said_to_be_one_each(tmp_path, raw, heads, capsys):
    for seed, name in enumerate(("patient01_baseline", "patient01_followup")):
        grey, brain, _ = heads.head(seed)
        heads.write(tmp_path / "in" / f"{name}.nii.gz", np.where(brain, grey, 0))
    assert convert(tmp_path / "in", "--stripped") == 0
    assert "each file is taken as a subject of its own" in capsys.readouterr().err


def test_options_may_change_while_no_case_is_finished(tmp_path, raw, heads, masks, capsys):
    """The remedy that a failed case names must not be refused."""
    for seed, name in enumerate(IXI[:2]):
        heads.write(tmp_path / "in" / f"{name}.nii.gz", heads.head(seed)[0] + 1)
    assert convert(tmp_path / "in", "--stripped") == 1
    assert "give masks by --brain-masks" in capsys.readouterr().out
    assert convert(tmp_path / "in", "--brain-masks", masks) == 0
    assert convert(tmp_path / "in", "--stripped") == 2


def test_images_beside_their_masks_are_no_masks_and_two_masks_are_refused(tmp_path, raw, heads, capsys):
    for seed, suffix in enumerate(("_mask", "_brain_mask")):
        grey, brain, _ = heads.head(seed)
        heads.write(tmp_path / "in" / f"p{seed}.nii.gz", grey)
        heads.write(tmp_path / "bet" / f"p{seed}.nii.gz", grey * brain)
        heads.write(tmp_path / "bet" / f"p{seed}{suffix}.nii.gz", brain.astype(np.uint8))
    assert convert(tmp_path / "in", "--brain-masks", tmp_path / "bet") == 0
    np.testing.assert_array_equal(heads.read(dataset(raw) / "labelsTr" / "p1.nii.gz"), heads.head(1)[1])
    heads.write(
        tmp_path / "bet" / "p1.nii.gz",
        (heads.head(1)[1] & (np.arange(heads.head(1)[1].shape[0]) % 2 > 0)[:, None, None]).astype(np.uint8),
    )
    assert convert(tmp_path / "in", "--brain-masks", tmp_path / "bet") == 1
    assert "p1.nii.gz, p1_brain_mask.nii.gz" in capsys.readouterr().out


def test_colour_images_are_named(tmp_path, raw, heads, capsys):
    grey, brain, _ = heads.head(0)
    heads.write(tmp_path / "in" / "a.nii.gz", np.where(brain, grey, 0))
    colour = sitk.Compose([sitk.GetImageFromArray(grey.astype(np.uint8))] * 3)
    sitk.WriteImage(colour, str(tmp_path / "in" / "b.nii.gz"))
    assert convert(tmp_path / "in", "--stripped") == 1
    assert "3 components a voxel" in capsys.readouterr().out


def test_names_that_become_one_case_name_are_refused(tmp_path):
    for name in ("a b.nii.gz", "a_b.nii.gz"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"cases of one name: a b.nii.gz, a_b.nii.gz. Rename"):
        list_cases(tmp_path, "*", None)


def test_analyze_files_are_named(tmp_path):
    (tmp_path / "OAS1_0001_MR1.img").touch()
    with pytest.raises(InputError, match=r"OAS1_0001_MR1.img is of Analyze format: convert such files to NIfTI"):
        list_cases(tmp_path, "*", None)


def test_masks_beside_the_images_are_no_images(tmp_path, raw, heads):
    for seed in range(2):
        grey, brain, _ = heads.head(seed)
        heads.write(tmp_path / "mixed" / f"p{seed}.nii.gz", grey)
        heads.write(tmp_path / "mixed" / f"p{seed}_mask.nii.gz", brain.astype(np.uint8))
        heads.write(tmp_path / "inner" / f"p{seed}.nii.gz", grey)
        heads.write(tmp_path / "inner" / "brains" / f"p{seed}.nii.gz", brain.astype(np.uint8))
    assert convert(tmp_path / "mixed", "--brain-masks", tmp_path / "mixed") == 0
    assert (
        convert(tmp_path / "inner", "--brain-masks", tmp_path / "inner" / "brains", "--name", "Other", "-d", 299) == 0
    )
    for folder in ("Dataset300_Healthy", "Dataset299_Other"):
        np.testing.assert_array_equal(heads.read(raw / folder / "labelsTr" / "p1.nii.gz"), heads.head(1)[1])
        assert len(list((raw / folder / "imagesTr").iterdir())) == 2


def test_outputs_of_hd_bet_are_told_apart(tmp_path, raw, heads):
    grey, brain, _ = heads.head(0)
    for name in "ab":
        heads.write(tmp_path / "in" / f"{name}.nii.gz", grey)
    for name, array in (("a", grey * brain), ("a_bet", brain), ("b_bet", grey * brain), ("b_bet_mask", brain)):
        heads.write(tmp_path / "bet" / f"{name}.nii.gz", array.astype(np.int16))
    assert convert(tmp_path / "in", "--brain-masks", tmp_path / "bet") == 0
    for name in "ab":
        np.testing.assert_array_equal(heads.read(dataset(raw) / "labelsTr" / f"{name}.nii.gz"), brain)
    assert [case.case_id for case in list_cases(tmp_path / "bet", "*_bet.nii.gz", None)] == ["a_bet", "b_bet"]


def test_images_that_are_named_bet_are_images_where_there_is_no_other(tmp_path, raw, heads, capsys):
    """As HD-BET 1 leaves them, with the head itself elsewhere."""
    for name, seed in (("a", 0), ("b", 1)):
        grey, brain, _ = heads.head(seed)
        heads.write(tmp_path / "in" / f"{name}_bet.nii.gz", grey * brain)
        heads.write(tmp_path / "in" / f"{name}_bet_mask.nii.gz", brain.astype(np.uint8))
    assert convert(tmp_path / "in", "--brain-masks", tmp_path / "in") == 0
    for name, seed in (("a", 0), ("b", 1)):
        np.testing.assert_array_equal(heads.read(dataset(raw) / "labelsTr" / f"{name}_bet.nii.gz"), heads.head(seed)[1])
    heads.write(tmp_path / "in" / "a.nii.gz", heads.head(0)[0])
    assert [case.case_id for case in list_cases(tmp_path / "in", "*", tmp_path / "in")] == ["a", "b_bet"]
    with pytest.raises(
        InputError, match=r"fits '\*_mask\*'. Left out, as they are named like masks: a_bet_mask, b_bet"
    ):
        list_cases(tmp_path / "in", "*_mask*", tmp_path / "in")


def test_image_that_is_stripped_already(tmp_path, raw, heads):
    for seed in range(2):
        grey, brain, _ = heads.head(seed)
        heads.write(tmp_path / "in" / f"p{seed}.nii.gz", np.where(brain, grey, 0).astype(np.int16))
    heads.write(tmp_path / "in" / "whole.nii.gz", heads.head(0)[0] + 1)
    scan = heads.head(0, shape=(14, 16, 16))[0] + 1
    scan[0] = 0
    heads.write(tmp_path / "in" / "with_skull.nii.gz", scan)
    assert convert(tmp_path / "in", "--stripped") == 1
    failed = load(raw, "integrity_report")["failed"]
    assert list(failed) == ["whole", "with_skull"]
    assert "is the whole image. Is it skull-stripped?" in failed["whole"]
    assert "has 3994 ml, and a brain 300 to 2500 ml (--brain-ml). Is it skull-stripped?" in failed["with_skull"]
    assert convert(tmp_path / "in", "--stripped", "--brain-ml", 300, 4500) == 1  # goes on, with other limits
    assert list(load(raw, "integrity_report")["failed"]) == ["whole"]
    assert convert(tmp_path / "in", "--stripped", "--brain-ml", 4500, 300) == 2
    np.testing.assert_array_equal(heads.read(dataset(raw) / "labelsTr" / "p1.nii.gz"), heads.head(1)[1])


def test_image_without_a_place_and_image_that_is_constant_in_the_brain_are_named(release, masks, raw, heads):
    image = nibabel.load(release / f"{IXI[0]}.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), None), release / f"{IXI[0]}.nii.gz")
    grey, brain, _ = heads.head(1)
    heads.write(release / f"{IXI[1]}.nii.gz", np.where(brain, 70, grey).astype(np.int16))
    assert convert(release, "--pattern", "*-T1*", "--brain-masks", masks) == 1
    failed = load(raw, "integrity_report")["failed"]
    assert set(failed) == {IXI[0], IXI[1]}
    assert f"{IXI[0]}.nii.gz does not tell how it lies in the patient" in failed[IXI[0]]
    assert f"Case {IXI[1]}, channel T1: every voxel in the brain is 70; it is no image" in failed[IXI[1]]


def test_missing_mask_and_damaged_image_are_named(release, masks, raw):
    (masks / f"{IXI[0]}_bet.nii.gz").unlink()
    (release / f"{IXI[1]}.nii.gz").write_bytes(b"not an image")
    assert convert(release, "--pattern", "*-T1*", "--brain-masks", masks) == 1
    failed = load(raw, "integrity_report")["failed"]
    assert set(failed) == {IXI[0], IXI[1]}
    assert f"found: none like {IXI[0]}.nii.gz" in failed[IXI[0]]
    assert "not readable as an image" in failed[IXI[1]]


def test_masks_that_are_images_are_said_to_be_there(release, masks, raw, heads):
    for suffix in ("_mask", "_bet"):
        heads.write(masks / f"{IXI[0]}{suffix}.nii.gz", heads.head(0)[0])
    assert convert(release, "--pattern", "*-T1*", "--brain-masks", masks) == 1
    (said,) = load(raw, "integrity_report")["failed"].values()
    assert f"{IXI[0]}_bet.nii.gz, {IXI[0]}_mask.nii.gz, which have more than two values" in said
    assert "none like" not in said


def test_more_than_one_image_of_a_visit_is_refused(release, masks, raw, capsys):
    assert convert(release, "--brain-masks", masks) == 2
    assert "IXI002-Guys-0828-T1, IXI002-Guys-0828-T2. Choose one sequence" in capsys.readouterr().err


def test_nothing_that_fits_is_refused(release, masks, raw, capsys):
    assert convert(release, "--pattern", "*-PD.nii.gz", "--brain-masks", masks) == 2
    assert "has no NIfTI image that fits '*-PD.nii.gz'" in capsys.readouterr().err


def test_going_on_with_other_options_is_refused(release, masks, raw, capsys):
    options = ("--pattern", "*-T1*", "--brain-masks", masks)
    assert convert(release, *options) == 0
    assert convert(release, *options, "--denoise") == 2
    assert "was made with brain =" in capsys.readouterr().err


def ball(size: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """A round brain (bool) and its tissue, in layers of 60 and 100."""
    z, y, x = np.indices((size, size, size)) / size
    brain = (z - 0.5) ** 2 + (y - 0.5) ** 2 + (x - 0.5) ** 2 < 0.2
    return brain, np.where((x * 4).astype(int) % 2, 100.0, 60.0) * brain


def test_denoising_takes_noise_out_and_leaves_edges():
    brain, tissue = ball()
    noisy = tissue + np.random.default_rng(0).normal(0, 3, tissue.shape)
    image = sitk.GetImageFromArray(np.where(brain, noisy, 0).astype(np.float32))
    result = sitk.GetArrayFromImage(prepared(image, brain, BrainOptions(denoise=True)))
    assert not result[~brain].any()  # not smeared out of the brain
    inner = ndimage.binary_erosion(brain, iterations=3)
    assert np.abs(result - tissue)[inner].mean() < 0.5 * np.abs(noisy - tissue)[inner].mean()
    assert result[20, 20, 18] - result[20, 20, 21] > 35  # of 40


def test_denoising_and_n4_run_from_the_command(tmp_path, raw, heads):
    brain, tissue = ball(16)
    for name in "ab":
        heads.write(tmp_path / "in" / f"{name}.nii.gz", tissue.astype(np.int16))
    assert convert(tmp_path / "in", "--stripped", "--n4", "2", "--denoise") == 0
    image = heads.read(dataset(raw) / "imagesTr" / "a_0000.nii.gz")
    assert image.dtype == np.float32
    assert not image[~brain].any() and (image[brain] > 0).all()
    assert not np.array_equal(image, tissue)


def test_n4_takes_out_a_bias_field():
    brain, tissue = ball()
    field = np.exp(0.6 * (np.arange(40)[:, None] / 40 - 0.5))
    noise = np.random.default_rng(0).normal(0, 1, tissue.shape)
    image = sitk.GetImageFromArray(((tissue + noise) * field * brain).astype(np.float32))
    corrected = n4_corrected(image, brain, 2)
    assert corrected.GetPixelID() == sitk.sitkFloat32

    def spread(image: sitk.Image) -> float:
        bright = sitk.GetArrayFromImage(image)[tissue == 100]
        return bright.std() / bright.mean()

    assert spread(corrected) < 0.4 * spread(image)
