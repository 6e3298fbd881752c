"""What is drawn of a knee: its T2 by place, its lesions and changes, and how it lies at the second visit."""

import numpy as np
import pytest

from nnunet_anomaly.phantoms.anatomy import knee_coordinates
from nnunet_anomaly.phantoms.mese import grid_axes
from nnunet_anomaly.phantoms.mese_knee import (
    FEMUR_RADIUS_MM,
    FocalLesion,
    Place,
    Pose,
    draw_mese_knee,
    draw_pose,
    posed_coordinates,
    rotation,
    true_regions,
)
from nnunet_anomaly.relaxometry.subregions import LABELS

KNEES = [draw_mese_knee(0, index) for index in range(60)]


def place(across_mm, angle_degrees, depth):
    arrays = np.broadcast_arrays(*(np.asarray(part, np.float32) for part in (across_mm, angle_degrees, depth)))
    return Place(*arrays)


def test_both_sides_and_seven_digits_are_drawn():
    sides = [knee.side for knee in KNEES]
    assert 20 < sides.count("left") < 40 and set(sides) == {"left", "right"}
    names = {knee.subject.identifier for knee in KNEES}
    assert len(names) == len(KNEES) and all(name.isdecimal() and len(name) == 7 for name in names)
    for knee in KNEES:
        assert (knee.subject.centre_mm[0] > 0) == (knee.side == "left")
        assert knee.name == f"{knee.subject.identifier}_{knee.side}"
        assert knee.case_name(1) == f"{knee.subject.identifier}_48m_{knee.side}"


def test_a_knee_is_drawn_the_same_again_and_another_seed_gives_another():
    again, other = draw_mese_knee(0, 7), draw_mese_knee(1, 7)
    assert again.record() == KNEES[7].record() != other.record()
    np.testing.assert_array_equal(again.poses[1].turn, KNEES[7].poses[1].turn)


def test_knees_differ_in_lesions_and_changes():
    lesions = [lesion for knee in KNEES for lesion in knee.t2.lesions]
    growths = [lesion.raised_ms[1] - lesion.raised_ms[0] for lesion in lesions]
    new = [lesion for lesion in lesions if lesion.raised_ms[0] == 0]
    staying = [growth for growth in growths if growth == 0]
    assert all(growth == 0 or 8 <= growth <= 20 for growth in growths)
    assert len(new) > 10 and len(staying) > 10 and len(growths) - len(new) - len(staying) > 5
    without = sum(not knee.t2.lesions for knee in KNEES)
    assert 4 <= without <= 30
    changes_ms = np.array([knee.t2.changes_ms for knee in KNEES])
    assert -2 <= changes_ms.min() < -1.5 and 3.5 < changes_ms.max() <= 4


def test_lesions_of_a_knee_lie_in_parts_of_their_own_and_where_they_say():
    for knee in KNEES:
        parts = [(lesion.side, lesion.part) for lesion in knee.t2.lesions]
        assert len(set(parts)) == len(parts)
        for lesion in knee.t2.lesions:
            label = int(true_regions(place(lesion.across_mm, lesion.angle_degrees, 0.2)))
            assert LABELS[f"Deep {lesion.side} {lesion.part}"] == label


def test_regions_are_numbered_as_those_of_unrolled_cartilage():
    for name, label in LABELS.items():
        layer, side, part = name.lower().split()
        where = place(
            {"medial": -20, "lateral": 20}[side],
            {"anterior": -50, "central": 5, "posterior": 45}[part],
            {"deep": 0.3, "superficial": 0.7}[layer],
        )
        assert int(true_regions(where)) == label


def test_t2_rises_smoothly_from_the_bone_to_the_joint():
    depths = np.linspace(0, 1, 101)
    for knee in KNEES:
        t2_ms = knee.t2.at_first_visit(place(-30.0, 5.0, depths))
        assert t2_ms[-1] - t2_ms[0] > 5 and np.abs(np.diff(t2_ms)).max() < 0.6


def test_t2_is_longest_near_the_magic_angle():
    knee = KNEES[0].t2
    flat = type(knee)(30.0, 50.0, 0.15, np.zeros((0, 4)), np.zeros(12), ())
    angles = np.arange(0, 91)
    t2_ms = flat.at_first_visit(place(0.0, angles, 0.5))
    assert abs(int(angles[t2_ms.argmax()]) - 54.7) < 1
    assert t2_ms.max() / t2_ms[0] == pytest.approx(1 + 0.15 * 0.7, abs=1e-3)


def test_a_lesion_is_a_patch_of_its_size():
    lesion = FocalLesion(1, "medial", "central", -20.0, 5.0, 7.0, (0.3, 1.0), (0.0, 10.0))
    across, around_mm = np.meshgrid(np.arange(-35, -5, 0.1), np.arange(-15, 15, 0.1))
    member = lesion.membership(place(across, 5.0 + np.degrees(around_mm / FEMUR_RADIUS_MM), 0.5))
    assert member.min() == 0 and member.max() == 1
    radius_mm = np.sqrt((member >= 0.5).sum() * 0.01 / np.pi)
    assert radius_mm == pytest.approx(7.0, abs=0.2)  # the bumps in its outline add 1.5 % of area
    assert member[(np.hypot(across + 20, around_mm) < 4)].min() == 1


def test_change_is_that_of_the_region_and_of_new_lesions():
    lesion = FocalLesion(1, "medial", "central", -20.0, 0.0, 7.0, (0.0, 0.0), (6.0, 18.0))
    knee = KNEES[0].t2
    drawn = type(knee)(30.0, 50.0, 0.1, knee.pattern, np.arange(12.0), (lesion,))
    for name, label in LABELS.items():
        layer, side, part = name.lower().split()
        where = place(
            {"medial": -20, "lateral": 20}[side],
            {"anterior": -60, "central": 0, "posterior": 60}[part],
            {"deep": 0.2, "superficial": 0.8}[layer],
        )
        growth_ms = 12.0 if (side, part) == ("medial", "central") else 0.0
        assert float(drawn.change(where)) == pytest.approx(label - 1 + growth_ms)


# ---- how it lies


def test_rotation_turns_about_the_three_axes():
    turn = rotation((10.0, -20.0, 30.0))
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(turn) == pytest.approx(1)
    np.testing.assert_allclose(rotation((0, 0, 90)) @ [1, 0, 0], [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(rotation((90, 0, 0)) @ [0, 1, 0], [0, 0, 1], atol=1e-12)


def test_the_second_visit_is_turned_and_shifted_a_little():
    degrees = [np.degrees(np.arccos((np.trace(knee.poses[1].turn) - 1) / 2)) for knee in KNEES]
    shifts_mm = [np.linalg.norm(knee.poses[1].shift_mm) for knee in KNEES]
    assert 2 < np.median(degrees) < 5 and max(degrees) < 7
    assert 2 < np.median(shifts_mm) < 5 and max(shifts_mm) < 7
    for knee in KNEES:
        np.testing.assert_array_equal(knee.poses[0].turn, np.eye(3))


def test_an_unmoved_knee_has_the_coordinates_of_the_other_phantoms():
    shape = KNEES[3].shape
    axes_mm, _ = grid_axes((5, 41, 39), "left")
    still = Pose(np.eye(3), np.zeros(3))
    for ours, theirs in zip(posed_coordinates(shape, still, axes_mm), knee_coordinates(shape, axes_mm), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=0.01)


def test_a_moved_knee_has_the_coordinates_of_where_its_points_were():
    """Point by point: a grid of a single point at the place where the point was before the knee moved."""
    shape, pose = KNEES[5].shape, draw_pose(np.random.default_rng(0))
    axes_mm, _ = grid_axes((5, 41, 39), "right")
    found = posed_coordinates(shape, pose, axes_mm)
    for index in ((0, 0, 0), (2, 20, 11), (4, 40, 38), (1, 33, 5)):
        here = np.array([axis[i] for axis, i in zip(axes_mm, index, strict=True)])
        before = pose.turn @ here + pose.shift_mm
        expected = knee_coordinates(shape, [np.array([value]) for value in before])
        np.testing.assert_allclose([axis[index] for axis in found], [axis.item() for axis in expected], atol=0.01)
