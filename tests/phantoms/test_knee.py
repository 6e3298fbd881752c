import cc3d
import numpy as np
import pytest
from scipy import ndimage

from nnunet_anomaly.geometry import dilate_mm
from nnunet_anomaly.phantoms.knee import (
    FIELD_OF_VIEW_MM,
    SMALL_GRID,
    draw_subject,
    label_map,
    make_case,
)
from nnunet_anomaly.phantoms.knee_lesions import MARROW_GRADES, MARROW_LESION, OSTEOPHYTE, has_lesions

GRID = (40, 80, 80)
CASES = range(6)  # of them 4 has no lesions at any level, 5 is a left knee


@pytest.fixture(scope="module")
def knees():
    return {level: [make_case(3, index, level, GRID) for index in CASES] for level in ("none", "mild", "severe")}


def all_knees(knees):
    return [knee for level in knees.values() for knee in level]


def lesion_mask(knee, kind):
    return np.isin(knee.lesions, [record["instance"] for record in knee.records if record["kind"] == kind])


def test_a_case_has_its_shape_types_and_spacing(knees):
    for knee in all_knees(knees):
        assert knee.image.shape == knee.labels.shape == knee.lesions.shape == GRID
        assert (knee.image.dtype, knee.labels.dtype, knee.lesions.dtype) == (np.uint16, np.uint8, np.uint8)
        np.testing.assert_allclose(np.multiply(knee.spacing_mm, GRID), FIELD_OF_VIEW_MM)
        assert set(np.unique(knee.labels)) == {0, 1, 2, 3, 4}


def test_each_bone_and_the_femoral_cartilage_are_in_one_piece_and_the_tibial_one_in_two(knees):
    for knee in all_knees(knees):
        pieces = [int(cc3d.connected_components(knee.labels == label).max()) for label in (1, 2, 3, 4)]
        assert pieces == [1, 1, 1, 2]


def test_cartilage_lies_on_its_bone_and_the_bones_do_not_touch(knees):
    for knee in all_knees(knees):
        for bone, cartilage in ((1, 2), (3, 4)):
            plate = knee.labels == cartilage
            to_bone_mm = ndimage.distance_transform_edt(knee.labels != bone, sampling=knee.spacing_mm)
            touching = plate & ndimage.binary_dilation(knee.labels == bone)
            assert touching.sum() > 0.3 * plate.sum()
            assert to_bone_mm[plate].max() < 8.0
        assert not (ndimage.binary_dilation(knee.labels == 1) & (knee.labels == 3)).any()
        assert not ndimage.binary_fill_holes(knee.labels == 1)[knee.labels == 0].any()


def test_sizes_are_those_of_knees(knees):
    """Bounds around 142, 11.8, 101 and 3.8 cm^3, measured in one segmented DESS image."""
    volumes = [np.bincount(knee.labels.ravel())[1:] * np.prod(knee.spacing_mm) / 1000 for knee in knees["none"]]
    assert (np.min(volumes, axis=0) > (90, 7, 60, 1.8)).all()
    assert (np.max(volumes, axis=0) < (260, 24, 165, 7)).all()
    assert (np.std(volumes, axis=0) > 0.03 * np.mean(volumes, axis=0)).all()


def test_contrast_is_that_of_dess(knees):
    for knee in knees["none"]:
        bone, cartilage = np.isin(knee.labels, (1, 3)), np.isin(knee.labels, (2, 4))
        marrow = ndimage.binary_erosion(bone, iterations=2)
        air = knee.image[:, :, :2].mean()
        assert np.median(knee.image[cartilage]) > 2 * np.median(knee.image[marrow]) > 4 * air
        # the cortex is a dark line between marrow and soft tissue
        shell = bone & ~ndimage.binary_erosion(bone)
        assert np.percentile(knee.image[shell], 25) < np.percentile(knee.image[marrow], 25)


def test_anatomy_tells_the_eight_flips_apart(knees):
    for knee in knees["none"]:
        flips = [tuple(axis for axis in range(3) if number >> axis & 1) for number in range(8)]
        scores = []
        for flip in flips:
            labels = np.flip(knee.labels, flip)
            scores.append(knee.image[np.isin(labels, (2, 4))].mean() - knee.image[np.isin(labels, (1, 3))].mean())
        assert scores[0] == max(scores)
        assert scores[0] > 1.2 * sorted(scores)[-2]
        # and by shape alone: no flip lays the labels on themselves
        overlaps = [(np.flip(knee.labels, flip) == knee.labels)[knee.labels > 0].mean() for flip in flips[1:]]
        assert max(overlaps) < 0.93


def test_left_knees_are_mirrored(knees):
    assert [knee.subject.side for knee in knees["none"]] == ["RIGHT"] * 5 + ["LEFT"]
    medial_widths = []
    for knee in knees["none"]:
        # the medial plate of tibial cartilage is the larger one; slices run to the patient's right
        plates = cc3d.connected_components(knee.labels == 4)
        sizes = np.bincount(plates.ravel())[1:]
        centres = ndimage.center_of_mass(knee.labels == 4, plates, [1, 2])
        larger_first = np.argmax(sizes) == np.argmin([centre[0] for centre in centres])
        medial_widths.append(larger_first == (knee.subject.side == "RIGHT"))
    assert all(medial_widths)


def test_same_seed_and_case_give_the_same_and_others_differ():
    grid = (24, 48, 48)
    first, again = make_case(3, 1, "severe", grid), make_case(3, 1, "severe", grid)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.lesions, again.lesions)
    for seed, index in ((3, 0), (4, 1)):
        other = make_case(seed, index, "severe", grid)
        assert (other.image != first.image).mean() > 0.5
        assert other.subject.identifier != first.subject.identifier


def test_a_case_is_the_same_knee_on_every_grid():
    coarse, fine = (make_case(3, 0, "severe", grid) for grid in ((20, 48, 48), (40, 96, 96)))
    blocks = fine.labels.reshape(20, 2, 48, 2, 48, 2)
    for label in (1, 3):
        halved = (blocks == label).mean(axis=(1, 3, 5)) > 0.5
        overlap = 2 * (halved & (coarse.labels == label)).sum() / (halved.sum() + (coarse.labels == label).sum())
        assert overlap > 0.95
    keys = ("kind", "bone", "site", "grade")
    big = [[record[key] for key in keys] for record in coarse.records if record["kind"] == MARROW_LESION]
    assert big == [[record[key] for key in keys] for record in fine.records if record["kind"] == MARROW_LESION]


def test_the_known_cases_have_lesions(knees):
    for level, cases in knees.items():
        for index, knee in enumerate(cases):
            expected = {"none": False, "mild": index in (1, 3, 5), "severe": index != 4}[level]
            assert has_lesions(level, index) == bool(knee.records) == knee.lesions.any() == expected


def test_records_tell_what_the_lesion_map_holds(knees):
    for knee in all_knees(knees):
        assert [record["instance"] for record in knee.records] == list(range(1, int(knee.lesions.max()) + 1))
        for record in knee.records:
            mask = knee.lesions == record["instance"]
            assert mask.sum() == record["voxels"] > 0
            assert record["volume_mm3"] == pytest.approx(mask.sum() * np.prod(knee.spacing_mm), abs=1e-3)
            assert (knee.labels[mask] == {"femur": 1, "tibia": 3}[record["bone"]]).all()


def test_a_pair_differs_nowhere_but_at_its_lesions(knees):
    for level in ("mild", "severe"):
        for clean, knee in zip(knees["none"], knees[level], strict=True):
            assert clean.subject == knee.subject
            beyond = ~dilate_mm(knee.lesions > 0, 9.0, knee.spacing_mm)
            np.testing.assert_array_equal(clean.image[beyond], knee.image[beyond])
            if not knee.records:
                np.testing.assert_array_equal(clean.image, knee.image)


def test_only_osteophytes_change_labels_and_only_from_background_to_their_bone(knees):
    for level in ("mild", "severe"):
        for clean, knee in zip(knees["none"], knees[level], strict=True):
            changed = clean.labels != knee.labels
            np.testing.assert_array_equal(changed, lesion_mask(knee, OSTEOPHYTE))
            assert (clean.labels[changed] == 0).all()
    assert any(lesion_mask(knee, OSTEOPHYTE).any() for knee in knees["severe"])


def test_marrow_lesions_are_bright_and_graded(knees):
    contrasts, volumes = {1: [], 2: [], 3: []}, {1: [], 2: [], 3: []}
    for level in ("mild", "severe"):
        for clean, knee in zip(knees["none"], knees[level], strict=True):
            marrow = ndimage.binary_erosion(np.isin(clean.labels, (1, 3)), iterations=2)
            usual = clean.image[marrow].mean()
            for record in knee.records:
                if record["kind"] == MARROW_LESION:
                    mask = knee.lesions == record["instance"]
                    change = knee.image[mask].mean() - clean.image[mask].mean()
                    assert change > 0
                    contrasts[record["grade"]].append(change / usual)
                    volumes[record["grade"]].append(record["volume_mm3"])
    for grade, (radii, _, _) in MARROW_GRADES.items():
        smallest, largest = (4 / 3 * np.pi * radius**3 for radius in radii)
        assert volumes[grade]
        assert smallest - 10 < min(volumes[grade]) and max(volumes[grade]) < largest + 10
    assert max(volumes[1]) < min(volumes[2]) and max(volumes[2]) < min(volumes[3])
    assert np.mean(contrasts[1]) < np.mean(contrasts[2]) < np.mean(contrasts[3])


def test_severe_cases_hold_more_than_mild_ones_and_reach_the_surface(knees):
    for mild, severe in zip(knees["mild"], knees["severe"], strict=True):
        if severe.records:
            assert (severe.lesions > 0).sum() > 5 * (mild.lesions > 0).sum()
            marrow = [record for record in severe.records if record["kind"] == MARROW_LESION]
            assert any(record["grade"] == 3 and record["reaches_surface"] for record in marrow)
            # near the surface some of the bone is as bright as cartilage
            bright = np.percentile(severe.image[severe.labels == 2], 5)
            assert (severe.image[lesion_mask(severe, MARROW_LESION)] > bright).mean() > 0.02


def test_identifiers_are_unique_seven_digit_numbers():
    names = [draw_subject(11, index).identifier for index in range(3000)]
    assert len(set(names)) == 3000
    assert all(len(name) == 7 and name.startswith("9") for name in names)


def test_smallest_grid_still_holds_every_label():
    knee = make_case(0, 0, "severe", (16, 32, 32))
    assert set(np.unique(knee.labels)) == {0, 1, 2, 3, 4}
    assert knee.records


def test_unknown_level_is_refused():
    with pytest.raises(ValueError, match="awful"):
        make_case(0, 0, "awful", SMALL_GRID)


def test_specks_become_background():
    class Fields:
        femur = np.full((6, 12, 12), 1.0)
        tibia = femoral_cartilage = tibial_cartilage = np.full((6, 12, 12), 1.0)

    Fields.femur[1:5, 1:7, 1:7] = -1.0
    Fields.femur[3, 10, 10] = -1.0
    labels = label_map(Fields)
    assert labels[3, 10, 10] == 0
    assert (labels == 1).sum() == 4 * 6 * 6
