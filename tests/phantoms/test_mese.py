"""One visit of the multi-echo phantom: signals, noise, masks, true T2 and regions."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage, stats

from nnunet_anomaly.phantoms.mese import (
    CARTILAGE_S0,
    ECHO_TIMES_MS,
    FIELD_OF_VIEW_MM,
    draw_lie,
    grid_axes,
    make_mese_visit,
)
from nnunet_anomaly.phantoms.mese_knee import Pose, draw_mese_knee
from nnunet_anomaly.phantoms.mese_reader import DICE_RANGE, dice, second_reader
from nnunet_anomaly.relaxometry.subregions import LABELS, subregions
from nnunet_anomaly.relaxometry.t2_fit import fit_t2
from nnunet_anomaly.relaxometry.unroll import unroll

GRID = (21, 96, 96)
SEED = 3  # knee 0 is a right one with a new lesion, knee 1 a left one with a lesion that grows


@pytest.fixture(scope="session")
def visits():
    """Both visits of a right and a left knee."""
    return [[make_mese_visit(draw_mese_knee(SEED, index), visit, GRID) for visit in (0, 1)] for index in (0, 1)]


@pytest.fixture
def right(visits):
    return visits[0]


def wholly(visit):
    return visit.share > 0.999


def parts(visit, side=None):
    direction = visit.as_image(visit.mask).GetDirection()
    return subregions(unroll(visit.mask, visit.spacing_mm, direction), side or visit.knee.side)


def test_shapes_and_types(right):
    for visit in right:
        assert visit.echoes.shape == (len(ECHO_TIMES_MS), *GRID) and visit.echoes.dtype == np.uint16
        assert visit.signals.shape == visit.echoes.shape and visit.signals.dtype == np.float32
        for name in ("mask", "regions", "lesions"):
            assert getattr(visit, name).shape == GRID and getattr(visit, name).dtype == np.uint8
        for name in ("share", "t2_ms", "change_ms"):
            assert getattr(visit, name).shape == GRID and getattr(visit, name).dtype == np.float32
        np.testing.assert_allclose(np.multiply(visit.spacing_mm, GRID), FIELD_OF_VIEW_MM)


def test_a_visit_is_made_the_same_again_and_visits_differ(right):
    again = make_mese_visit(draw_mese_knee(SEED, 0), 1, GRID)
    for name in ("echoes", "mask", "t2_ms", "change_ms", "regions", "lesions"):
        np.testing.assert_array_equal(getattr(again, name), getattr(right[1], name))
    assert (right[0].echoes != right[1].echoes).mean() > 0.9
    assert right[0].as_image(right[0].mask).GetDirection() != right[1].as_image(right[1].mask).GetDirection()


def test_slices_are_a_little_oblique():
    for index in range(20):
        direction, _ = draw_lie(draw_mese_knee(0, index), index % 2)
        np.testing.assert_allclose(direction @ direction.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(direction) == pytest.approx(1)
        off_degrees = np.degrees(np.arccos(-direction[0, 2]))  # slices to the right
        assert 0.1 < off_degrees < 8


def test_the_mask_has_what_is_at_least_half_cartilage_and_all_truth_lies_in_it(right):
    for visit in right:
        inside = visit.mask > 0
        np.testing.assert_array_equal(inside, visit.share >= 0.5)
        assert ((visit.share > 0.05) & (visit.share < 0.95)).sum() > inside.sum() / 2  # partial volume
        assert visit.share.max() == pytest.approx(1, abs=1e-6)
        np.testing.assert_array_equal(visit.regions > 0, inside)
        np.testing.assert_array_equal(visit.t2_ms > 0, inside)
        assert not visit.lesions[~inside].any() and not visit.change_ms[~inside].any()
        assert 9_000 < inside.sum() * np.prod(visit.spacing_mm) < 20_000  # mm^3
        assert visit.t2_ms[inside].min() > 24 and visit.t2_ms[inside].max() < 85


# ---- signal and noise


@pytest.mark.parametrize("number", [0, 1])
def test_fit_of_the_signals_is_the_truth(visits, number):
    """Where a voxel is cartilage alone; T2 differs a little between the depths of a slice, which mix in signal."""
    for visit in visits[number]:
        fit = fit_t2(visit.signals, ECHO_TIMES_MS, mask=wholly(visit), model="rician", sigma=0.01)
        error_ms = (fit.t2_ms - visit.t2_ms)[wholly(visit)]
        assert len(error_ms) > 300
        assert np.median(np.abs(error_ms)) < 0.02 and np.abs(error_ms).max() < 0.6


def test_mixed_voxels_mix_in_signal_and_not_in_t2(right):
    visit = right[0]
    mixed = (visit.share > 0.5) & (visit.share < 0.8)
    fit = fit_t2(visit.signals, ECHO_TIMES_MS, mask=mixed, model="mono")
    error_ms = (fit.t2_ms - visit.t2_ms)[mixed]
    assert np.median(np.abs(error_ms[np.isfinite(error_ms)])) > 1


def test_the_first_echo_alone_is_falsified(visits):
    factors = []
    for visit in (one for pair in visits for one in pair):
        # of three echoes of a decay the middle one is the others' geometric mean
        pure = visit.signals[:, wholly(visit)].astype(np.float64)
        expected = pure[1] ** 2 / pure[2]
        np.testing.assert_allclose(pure[0] / expected, visit.first_echo, rtol=2e-3)
        for echo in range(1, 5):
            np.testing.assert_allclose(pure[echo] * pure[echo + 2], pure[echo + 1] ** 2, rtol=2e-3)
        factors.append(visit.first_echo)
    assert all(0.86 <= factor <= 0.94 for factor in factors) and len(set(factors)) == 4


def test_noise_is_rician_with_the_sigma_that_was_asked_for():
    knee = draw_mese_knee(SEED, 0)
    visit = make_mese_visit(knee, 0, GRID, snr=40.0)
    assert visit.sigma == CARTILAGE_S0 / 40
    rng = np.random.default_rng(0)
    for echo, chosen in ((1, wholly(visit)), (6, wholly(visit)), (3, visit.signals[3] < 1)):
        signal = visit.signals[echo][chosen][:3000] / visit.sigma
        # undo the rounding to whole numbers
        values = visit.echoes[echo][chosen][:3000] + rng.uniform(-0.5, 0.5, len(signal))
        assert len(signal) > 300

        def p_value(sigma, signal=signal, values=values):
            return stats.kstest(stats.rice.cdf(values / sigma, signal * visit.sigma / sigma), "uniform").pvalue

        assert p_value(visit.sigma) > 0.01
    assert p_value(1.15 * visit.sigma) < 1e-4  # of the background


def test_noise_leaves_the_signal_alone(right):
    other = make_mese_visit(draw_mese_knee(SEED, 0), 0, GRID, snr=200.0)
    np.testing.assert_array_equal(other.signals, right[0].signals)
    deviation = (other.echoes[2] - other.signals[2])[wholly(other)]
    assert deviation.std() == pytest.approx(CARTILAGE_S0 / 200, rel=0.1)


# ---- what is true


def test_deep_layers_have_shorter_t2(visits):
    for visit in (one for pair in visits for one in pair):
        for name, label in LABELS.items():
            if name.startswith("Deep"):
                deep, superficial = (visit.t2_ms[visit.regions == number] for number in (label, label + 6))
                assert superficial.mean() - deep.mean() > 3


def test_change_is_what_was_drawn(visits):
    """Region by region, away from lesions and from the borders of regions."""
    for _, visit in visits:
        drawn = visit.knee.t2
        checked = 0
        for label in range(1, 13):
            inner = visit.regions == label
            inner &= np.abs(np.abs(visit.place.angle_degrees) - 30) > 5
            inner &= np.abs(visit.place.depth - 0.5) > 0.2
            for lesion in drawn.lesions:
                inner &= lesion.membership(visit.place) < 1e-3
            if inner.sum() > 30:
                checked += 1
                np.testing.assert_allclose(visit.change_ms[inner].mean(), drawn.changes_ms[label - 1], atol=0.1)
                assert np.abs(visit.change_ms[inner] - drawn.changes_ms[label - 1]).mean() < 0.15
        assert checked >= 8


def test_drawn_changes_show_in_the_means_of_regions(visits):
    """Regions without a lesion: their mean changes as drawn, but for which voxels the grid catches."""
    drawn_ms, constructed_ms, unrolled_ms = [], [], []
    for first, second in visits:
        labels = [parts(visit).label_map() for visit in (first, second)]
        hurt = {f"{lesion.side} {lesion.part}" for lesion in first.knee.t2.lesions}
        for name, label in LABELS.items():
            if name.split(" ", 1)[1] not in hurt:
                before, after = (visit.t2_ms[visit.regions == label].mean() for visit in (first, second))
                constructed_ms.append(after - before)
                before, after = (
                    visit.t2_ms[found == label].mean() for visit, found in zip((first, second), labels, strict=True)
                )
                unrolled_ms.append(after - before)
                drawn_ms.append(first.knee.t2.changes_ms[label - 1])
    assert len(drawn_ms) == 20
    assert np.abs(np.subtract(constructed_ms, drawn_ms)).max() < 0.5
    assert np.abs(np.subtract(unrolled_ms, drawn_ms)).mean() < 0.8
    assert np.corrcoef(drawn_ms, unrolled_ms)[0, 1] > 0.9


@pytest.mark.parametrize("number", [0, 1])
def test_true_maps_of_both_visits_differ_by_the_change(visits, number):
    """T2 in the middle of the second visit's voxels, at the first visit, by the drawn function of place."""
    visit = visits[number][1]
    pure = wholly(visit)
    place = type(visit.place)(*(getattr(visit.place, name)[pure] for name in ("across_mm", "angle_degrees", "depth")))
    before_ms = visit.knee.t2.at_first_visit(place)
    np.testing.assert_allclose(visit.t2_ms[pure] - before_ms, visit.change_ms[pure], atol=1.5)
    assert np.abs(visit.t2_ms[pure] - before_ms - visit.change_ms[pure]).mean() < 0.1


def test_lesions_rise_as_drawn(visits):
    for number, before in ((0, False), (1, True)):
        first, second = visits[number]
        (lesion,) = second.knee.t2.lesions
        assert (first.lesions == lesion.number).any() == before
        inside = second.lesions == lesion.number
        assert inside.sum() > 20
        middle = inside & (lesion.membership(second.place) > 0.99)
        growth_ms = lesion.raised_ms[1] - lesion.raised_ms[0]
        change_ms = second.change_ms[middle] - second.knee.t2.changes_ms[second.regions[middle] - 1]
        assert middle.sum() >= 5 and np.median(change_ms) == pytest.approx(growth_ms, abs=0.5)


def test_the_second_visit_shows_the_same_plate_elsewhere(visits):
    """Carried back to where it was, it lies on that of the first visit; as it is, it does not."""
    for first, second in visits:
        pose = second.knee.poses[1]
        axes_mm, _ = grid_axes(GRID, second.knee.side)
        steps_mm = np.array([axis[1] - axis[0] for axis in axes_mm])
        inside = np.nonzero(second.mask)
        here_mm = np.stack([axis[index] for axis, index in zip(axes_mm, inside, strict=True)])
        before_mm = pose.turn @ here_mm + pose.shift_mm[:, None]
        index = (before_mm - np.array([axis[0] for axis in axes_mm])[:, None]) / steps_mm[:, None]
        carried = ndimage.map_coordinates(first.share, index, order=1)
        assert carried.mean() > 0.75 and first.share[inside].mean() < 0.6


@pytest.mark.parametrize("number", [0, 1])
def test_regions_by_construction_are_those_of_the_unrolled_mask(visits, number):
    """For a knee that lies straight: else angles around the femur are off by as much as it is turned."""
    knee = visits[number][0].knee
    shape = replace(knee.shape, matrix=np.eye(3))
    straight = replace(knee, shape=shape, poses=(Pose(np.eye(3), np.zeros(3)),) * 2)
    visit = make_mese_visit(straight, 0, GRID)
    mask, spacing_mm = visit.mask, visit.spacing_mm
    upright = np.array([[0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]).ravel()
    found = subregions(unroll(mask, spacing_mm, upright), knee.side).label_map()[mask > 0].astype(int) - 1
    true = visit.regions[mask > 0].astype(int) - 1
    assert (found // 3 % 2 == true // 3 % 2).mean() > 0.95  # medial and lateral
    assert (found % 3 == true % 3).mean() > 0.95
    assert (found // 6 == true // 6).mean() > 0.85
    assert (found == true).mean() > 0.82


def test_a_wrong_side_exchanges_medial_and_lateral(right):
    visit = right[0]
    inside = visit.mask > 0
    for side, agrees in (("right", True), ("left", False)):
        found = parts(visit, side).label_map()[inside].astype(int) - 1
        share = (found // 3 % 2 == (visit.regions[inside].astype(int) - 1) // 3 % 2).mean()
        assert share > 0.9 if agrees else share < 0.1


def test_the_lateral_facet_of_the_trochlea_tells_the_side(visits):
    for pair in visits:
        for visit in pair:
            assert parts(visit).side_by_shape == visit.knee.side
            assert parts(visit, {"left": "right", "right": "left"}[visit.knee.side]).warning is not None


# ---- the second reader


def test_the_second_reader_disagrees_as_much_as_is_said(visits):
    values = []
    for visit in (one for pair in visits for one in pair):
        second = second_reader(visit)
        np.testing.assert_array_equal(second, second_reader(visit))
        assert second.dtype == np.uint8 and set(np.unique(second)) == {0, 1}
        first = visit.mask > 0
        values.append(dice(first, second > 0))
        # neither is inside the other
        assert (first & (second == 0)).sum() > 0.05 * first.sum() and ((second > 0) & ~first).sum() > 0.05 * first.sum()
        assert (second > 0)[ndimage.binary_dilation(first, iterations=4)].sum() > 0.98 * second.sum()
    assert DICE_RANGE[0] <= min(values) and max(values) <= DICE_RANGE[1] and len(set(values)) == 4


def test_the_second_reader_of_an_empty_mask_has_none(right):
    empty = replace(right[0], mask=np.zeros_like(right[0].mask))
    assert not second_reader(empty).any()


def test_dice_is_that_of_two_masks():
    first, second = np.array([1, 1, 0, 0, 1]) > 0, np.array([1, 0, 0, 1, 1]) > 0
    assert dice(first, second) == pytest.approx(2 * 2 / 6)
