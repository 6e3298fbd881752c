"""DICOM objects beside the CT of the hip phantom, the same bytes each time: a segmentation (SEG) and landmarks (SR)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunet_anomaly import __version__
from nnunet_anomaly.extras import import_highdicom
from nnunet_anomaly.phantoms.dicom import make_uid

if TYPE_CHECKING:
    from pydicom import Dataset

COMPREHENSIVE_3D_SR = "1.2.840.10008.5.1.4.1.1.88.34"
MAKER = "nnunet-anomaly phantom"
TIME = "120000"


def write_segmentation(path: Path, masks: Mapping[str, np.ndarray], slices: Sequence[Path], identity: str) -> None:
    """Write binary segments, each named in its SegmentDescription.

    Args:
        path: of the file.
        masks: bool arrays (slices, rows, columns) by name, in the order of the segments.
        slices: files of the CT series, in the order of the masks' slices.
        identity: what the identifiers depend on.

    Raises:
        AnomalyError: highdicom is not installed.
    """
    highdicom = import_highdicom()
    from pydicom import dcmread
    from pydicom.sr.codedict import codes

    descriptions = []
    for number, name in enumerate(masks, start=1):
        one = highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=codes.SCT.Bone,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        one.SegmentDescription = name
        descriptions.append(one)
    segmentation = highdicom.seg.Segmentation(
        source_images=[dcmread(file, stop_before_pixels=True) for file in slices],
        pixel_array=np.stack([mask.astype(np.uint8) for mask in masks.values()], axis=-1),
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=descriptions,
        series_instance_uid=make_uid("seg series", identity),
        series_number=3,
        sop_instance_uid=make_uid("seg", identity),
        instance_number=1,
        manufacturer=MAKER,
        manufacturer_model_name=MAKER,
        software_versions=__version__,
        device_serial_number="1",
    )
    _without_clock(segmentation, make_uid("seg dimensions", identity))
    segmentation.save_as(path)


def _without_clock(dataset: Dataset, dimension_uid: str) -> None:
    """Replace what highdicom takes from the clock and from chance."""
    for keyword, value in (("Date", dataset.StudyDate), ("Time", TIME)):
        for name in (f"InstanceCreation{keyword}", f"Content{keyword}"):
            if name in dataset:
                setattr(dataset, name, value)
    for item in dataset.get("ContributingEquipmentSequence", []):
        item.ContributionDateTime = f"{dataset.StudyDate}{TIME}"
    for name in ("DimensionOrganizationSequence", "DimensionIndexSequence"):
        for item in dataset.get(name, []):
            item.DimensionOrganizationUID = dimension_uid


def write_landmarks(path: Path, landmarks_mm: Mapping[str, Sequence[float]], ct_slice: Path, identity: str) -> None:
    """Write named points in patient coordinates as a structured report.

    Args:
        path: of the file.
        landmarks_mm: (x, y, z) by name.
        ct_slice: a file of the CT series, for patient, study and frame of reference.
        identity: what the identifiers depend on.
    """
    from pydicom import Dataset, dcmread

    source = dcmread(ct_slice, stop_before_pixels=True)
    report = Dataset()
    for keyword in ("PatientName", "PatientID", "PatientSex", "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID"):
        setattr(report, keyword, source.get(keyword, ""))
    report.SOPClassUID, report.SOPInstanceUID = COMPREHENSIVE_3D_SR, make_uid("sr", identity)
    report.SeriesInstanceUID, report.SeriesNumber, report.InstanceNumber = make_uid("sr series", identity), 2, 1
    report.Modality, report.Manufacturer = "SR", MAKER
    report.ContentDate, report.ContentTime = source.StudyDate, TIME
    report.CompletionFlag, report.VerificationFlag, report.ValueType = "COMPLETE", "UNVERIFIED", "CONTAINER"
    report.ConceptNameCodeSequence = [_code("125007", "DCM", "Measurement Group")]
    report.ContinuityOfContent = "SEPARATE"
    report.ContentSequence = [
        _landmark(name, point, source.FrameOfReferenceUID) for name, point in landmarks_mm.items()
    ]
    report.file_meta = _file_meta(report)
    report.save_as(path, enforce_file_format=True)


def _landmark(name: str, point_mm: Sequence[float], frame_uid: str) -> Dataset:
    from pydicom import Dataset

    item = Dataset()
    item.RelationshipType, item.ValueType = "CONTAINS", "SCOORD3D"
    item.ConceptNameCodeSequence = [_code(name.upper().replace(" ", "_")[:16], "99PHANTOM", name)]
    item.GraphicType, item.ReferencedFrameOfReferenceUID = "POINT", frame_uid
    item.GraphicData = [float(value) for value in point_mm]
    return item


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    from pydicom import Dataset

    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return code


def _file_meta(dataset: Dataset) -> Any:
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return meta
