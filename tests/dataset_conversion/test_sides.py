"""Left and right by geometry: properties, clear cases, and the cases that are refused."""

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st

from nnunet_anomaly.dataset_conversion.ctpel import COPY_NAMES, PAIRED, placed, structures_of_label_map
from nnunet_anomaly.dataset_conversion.sides import Place, disagreements, midline_mm, sides_by_geometry
from nnunet_anomaly.errors import LabelError
from nnunet_anomaly.label_maps import read_label_map


def places(**x_mm):
    """Places by name: ``femur_left=80`` is named so and lies at 80 mm; ``a_femur`` has no side in its name."""
    found = []
    for name, x in x_mm.items():
        words = name.split("_")
        structure = next(word for word in words if word in PAIRED)
        side = next((word for word in words if word in ("left", "right")), None)
        found.append(Place(name, structure, side, float(x), PAIRED[structure]))
    return found


WHOLE = {"femur_left": 90, "femur_right": -95, "hip_left": 60, "hip_right": -62, "sacrum": 1}


def test_x_grows_to_the_left():
    assert sides_by_geometry(places(**WHOLE)) == ["left", "right", "left", "right", None]
    assert disagreements(places(**WHOLE)) is None
    assert midline_mm(places(**WHOLE)) == -1.0  # of -2.5, -1 and 1


@given(
    half=st.lists(st.floats(25, 150), min_size=2, max_size=2),
    shift=st.floats(-500, 500),
    names_are_right=st.booleans(),
)
def test_shifting_changes_nothing_and_mirroring_exchanges(half, shift, names_are_right):
    sign = 1 if names_are_right else -1
    x_mm = {"femur_left": half[0], "femur_right": -half[0], "hip_left": half[1], "hip_right": -half[1], "sacrum": 0.0}
    moved = places(**{name: sign * x + shift for name, x in x_mm.items()})
    lies = sides_by_geometry(moved)
    assert (lies == [place.side for place in moved]) == names_are_right
    assert (disagreements(moved) is None) == names_are_right


def test_one_exchanged_pair_is_named_with_all_places():
    said = disagreements(places(**{**WHOLE, "hip_left": -62, "hip_right": 60}))
    assert said.startswith("'hip_left', 'hip_right' lie on the other side than their names say")
    assert "'femur_left' 91.0 mm to the left" in said and "'hip_left' 61.0 mm to the right" in said


def test_one_femur_is_told_by_the_others():
    assert sides_by_geometry(places(a_femur=-90, hip_left=60, hip_right=-62, sacrum=1))[0] == "right"
    assert sides_by_geometry(places(a_femur=90, sacrum=1))[0] == "left"


def test_names_without_side_disagree_with_nothing():
    assert disagreements(places(a_femur=-90, b_femur=80, sacrum=0)) is None


def test_nothing_and_unpaired_have_no_side():
    assert sides_by_geometry([]) == []
    assert sides_by_geometry(places(sacrum=4)) == [None]


@pytest.mark.parametrize(
    "x_mm,message",
    [
        ({"a_femur": 90}, "nothing tells where the body's midline is"),
        ({"a_femur": 6, "sacrum": 1}, "'a_femur' lies on the body's midline"),
        ({**WHOLE, "femur_left": -40}, "'femur_left' and 'femur_right' do not lie on either side"),
        ({"hip_left": 5, "hip_right": -5, "sacrum": 0}, "do not lie on either side of the midline"),
    ],
)
def test_unclear_cases_are_refused(x_mm, message):
    with pytest.raises(LabelError, match=message):
        sides_by_geometry(places(**x_mm))


def test_six_real_label_maps_have_label_1_on_the_right(real_data):
    files = sorted((real_data / "hip_labels").glob("*.nii.gz"))
    assert len(files) == 6
    for path in files:
        statistics = sitk.LabelShapeStatisticsImageFilter()
        statistics.Execute(read_label_map(path)[1])
        x_mm = [statistics.GetCentroid(label)[0] for label in range(1, 6)]
        found = [
            Place(label, COPY_NAMES[label], None, x, PAIRED[COPY_NAMES[label]])
            for label, x in zip("12345", x_mm, strict=True)
        ]
        assert sides_by_geometry(found) == ["right", "left", "right", "left", None], path.name


def test_place_of_a_mask_is_in_patient_coordinates():
    image = sitk.Image((7, 3, 3), sitk.sitkUInt8)
    image.SetSpacing((2.0, 1.0, 1.0))
    image.SetOrigin((10.0, 0.0, 0.0))
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    array = np.zeros((3, 3, 7), np.uint8)
    array[1, 1, 4:6] = 5
    found = structures_of_label_map(array, image, image, None, "labels.nii.gz")
    assert found.notes == found.left_out == [] and [part.structure for part in found.parts] == ["sacrum"]
    assert placed(found.parts[0], image).x_mm == pytest.approx(10 - 2 * 4.5)
