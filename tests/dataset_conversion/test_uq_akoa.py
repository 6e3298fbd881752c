"""The UQ label files on tiny OAI trees: labels with and without a true header, visits, both knees."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_anomaly.cli.main import main

TAIL = "WB01_Femur+Tibia+Patella(Bone)_Femur+Tibia+Patella(Cartilage).nii.gz"
SCANS = [("9001104", "00m"), ("9001104", "72m"), ("9002430", "00m"), ("9014797", "00m"), ("9014797", "36m")]


@dataclass(frozen=True)
class Uq:
    release: Path
    oai_root: Path
    truth: dict[str, np.ndarray]

    def series(self, subject: str, visit: str, barcode: str = "100") -> Path:
        return self.oai_root / visit / "0.C.2" / subject / "20050101" / barcode

    def label(self, subject: str, visit: str) -> Path:
        if (subject, visit) == SCANS[2]:
            return self.release / "OAI_ZIB-UQ" / f"{subject}_{TAIL}"
        return self.release / "OAI_AKOA" / f"{subject}_{visit}_{TAIL}"


@pytest.fixture
def uq(tmp_path, tools) -> Uq:
    """Three subjects, two with two visits; the labels are NIfTI in another order of axes than the images."""
    uq = Uq(tmp_path / "Anomaly-Aware", tmp_path / "oai", {})
    for seed, (subject, visit) in enumerate(SCANS):
        grey, label = tools.knee(seed)
        label[5:7, 3:5, 8:10] = 7
        uq.truth[f"{subject}_{visit}"] = label
        tools.write_series(uq.series(subject, visit), grey, uid=f"1.2.826.0.1.3680043.2.1125.{seed + 1}")
        placed = sitk.DICOMOrient(tools.with_geometry(label), "LPS")
        uq.label(subject, visit).parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(placed, str(uq.label(subject, visit)))
    return uq


def convert(uq: Uq, *options: str) -> int:
    arguments = ["convert", "uq-akoa", str(uq.release), "--oai-root", str(uq.oai_root), "-d", "103", "-np", "1"]
    return main([*arguments, *options])


def load(raw: Path, name: str):
    return json.loads((raw / "Dataset103_KneeUQ" / f"{name}.json").read_text())


def label_of(raw: Path, case_id: str) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(raw / "Dataset103_KneeUQ" / "labelsTr" / f"{case_id}.nii.gz")))


def test_release_is_converted(uq, raw):
    assert convert(uq) == 0
    for case_id, label in uq.truth.items():
        np.testing.assert_array_equal(label_of(raw, case_id), label)
    case = load(raw, "cases")["9001104_72m"]
    assert (case["subject"], case["visit"], case["laterality"]) == ("9001104", "72m", "right")
    assert case["alignment"]["option"] == "header"
    assert load(raw, "dataset")["labels"]["femoral_bone_lesion"] == 7
    assert "femoral_bone_lesion" in load(raw, "dataset")["anomaly"]["roi_labels"]


def test_visits_of_a_subject_share_a_fold(uq, raw):
    convert(uq)
    splits = load(raw, "splits_final")
    assert len(splits) == 3
    for split in splits:
        assert {name[:7] for name in split["train"]} | {name[:7] for name in split["val"]} == {s for s, _ in SCANS}
        assert not {name[:7] for name in split["train"]} & {name[:7] for name in split["val"]}


def test_labels_without_a_true_header_need_the_option(uq, raw, tools, capsys):
    for subject, visit in SCANS:
        array = np.flip(uq.truth[f"{subject}_{visit}"], (0, 1))
        sitk.WriteImage(
            sitk.GetImageFromArray(np.ascontiguousarray(np.moveaxis(array, 0, -1))), str(uq.label(subject, visit))
        )
    assert convert(uq) == 1
    assert len(load(raw, "integrity_report")["failed"]) == 5
    assert "use --flip per-case" in load(raw, "integrity_report")["failed"]["9001104_00m"]
    assert convert(uq, "--flip", "per-case") == 0  # no case was finished, so that the remedy goes on in the same folder
    label = sitk.ReadImage(str(raw / "Dataset103_KneeUQ" / "labelsTr" / "9014797_36m.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(label), uq.truth["9014797_36m"])
    assert convert(uq) == 2
    assert "flip = 'per-case'; now it is 'header'" in capsys.readouterr().err


def test_both_knees_are_told_apart_by_the_header(uq, raw, tools):
    folder = uq.series("9002430", "00m", "200")
    shifted = tools.knee(9)[0]
    tools.write_series(folder, shifted, description="SAG_3D_DESS_LEFT", uid="1.2.826.0.1.3680043.2.1125.50", side="L")
    for path in folder.iterdir():
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        reader.LoadPrivateTagsOn()
        image = reader.Execute()
        x, y, z = (float(value) for value in image.GetMetaData("0020|0032").split("\\"))
        image.SetMetaData("0020|0032", f"{x + 100:g}\\{y:g}\\{z:g}")
        image.SetMetaData("0020|0037", "0\\1\\0\\0\\0\\-1")
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(path.with_suffix(".dcm")))
        writer.Execute(image)
        path.with_suffix(".dcm").rename(path)
    assert convert(uq) == 0
    assert load(raw, "cases")["9002430_00m"]["laterality"] == "right"


def test_two_series_that_both_fit_need_a_side(uq, raw, tools):
    tools.write_series(
        uq.series("9002430", "00m", "200"),
        tools.knee(2)[0],
        description="SAG_3D_DESS_LEFT",
        uid="1.2.826.0.1.3680043.2.1125.50",
        side="L",
    )
    assert convert(uq) == 1
    assert "Choose with --side" in load(raw, "integrity_report")["failed"]["9002430_00m"]
    arguments = ["convert", "uq-akoa", str(uq.release), "--oai-root", str(uq.oai_root), "-d", "104", "-np", "1"]
    assert main([*arguments, "--side", "right"]) == 0


def test_other_sequences_of_the_visit_are_left_out(uq, raw, tools):
    tools.write_series(uq.series("9002430", "00m", "200"), tools.knee(2)[0], description="SAG_IW_TSE_RIGHT")
    assert convert(uq) == 0


def test_missing_image_and_doubled_label_are_named(uq, raw):
    for path in uq.series("9014797", "36m").iterdir():
        path.unlink()
    subject_folder = uq.oai_root / "72m" / "0.C.2" / "9001104"
    subject_folder.rename(subject_folder.with_name("elsewhere"))
    double = uq.release / "OAI_AKOA" / f"9002430_00m_{TAIL}"
    double.write_bytes(uq.label("9002430", "00m").read_bytes())
    assert convert(uq) == 1
    failed = load(raw, "integrity_report")["failed"]
    assert set(failed) == {"9014797_36m", "9001104_72m", "9002430_00m"}
    assert "none of its 1 image folders has a DESS series" in failed["9014797_36m"]
    assert "has no 72m/*/9001104" in failed["9001104_72m"]
    assert "more than one label file: OAI_AKOA/9002430_00m" in failed["9002430_00m"]


def test_folder_without_labels_is_refused(tmp_path, raw, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["convert", "uq-akoa", str(tmp_path / "empty"), "--oai-root", str(tmp_path), "-d", "103"]) == 2
    assert "has no files <subject>_" in capsys.readouterr().err
