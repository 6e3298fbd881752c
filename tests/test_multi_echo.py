"""All echoes beside a dataset: written and read back; echo times that are none."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st

from nnunet_anomaly.errors import GeometryError, InputError
from nnunet_anomaly.multi_echo import MultiEcho, check_echo_times, paths_of, read_multi_echo, write_multi_echo

TURNED = sitk.Euler3DTransform((0, 0, 0), 0.1, -1.4, 0.3).GetMatrix()


def stack(echoes: int = 3, **more) -> MultiEcho:
    images = []
    for index in range(echoes):
        array = np.random.default_rng(index).integers(0, 900, (4, 5, 6)).astype(np.int16)
        image = sitk.GetImageFromArray(array)
        image.SetSpacing((0.3125, 0.446, 3.5))
        image.SetOrigin((-60.5, 20.25, 33))
        image.SetDirection(TURNED)
        images.append(image)
    times_ms = tuple(10.0 * (index + 1) for index in range(echoes))
    facts = {"side": "right", "series": "1.2.3", "subject": "9003126", "time_point": "48m", **more}
    return MultiEcho(tuple(images), times_ms, **facts)


def test_echoes_come_back_with_geometry_and_facts(tmp_path):
    written = stack(time_point=None)
    write_multi_echo(written, tmp_path, "a")
    read = read_multi_echo(tmp_path, "a")
    assert (read.echo_times_ms, read.side, read.series) == ((10.0, 20.0, 30.0), "right", "1.2.3")
    assert (read.subject, read.time_point) == ("9003126", None)
    assert read.signals().shape == (3, 4, 5, 6) and read.signals().dtype == np.int16
    np.testing.assert_array_equal(read.signals(), written.signals())
    for image in read.images:
        np.testing.assert_allclose(image.GetSpacing(), (0.3125, 0.446, 3.5), rtol=1e-6)
        np.testing.assert_allclose(image.GetOrigin(), (-60.5, 20.25, 33), rtol=1e-6)
        np.testing.assert_allclose(image.GetDirection(), TURNED, atol=1e-6)
    image_path, _ = paths_of(tmp_path, "a")
    assert sitk.ReadImage(str(image_path)).GetSize() == (6, 5, 4, 3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"echo_times_ms": [10, 20]}, "3 echoes, but a.json has 2 echo times"),
        ({"echo_times_ms": [10, 30, 20]}, "must ascend; they are 10, 30, 20"),
        ({"echo_times_ms": "10"}, "a list of numbers"),
        ({"side": "both"}, "a.json: The side is 'both'"),
        ({"subject": ...}, "a.json has no subject"),
    ],
)
def test_json_that_does_not_fit_is_refused(tmp_path, change, said):
    write_multi_echo(stack(), tmp_path, "a")
    _, path = paths_of(tmp_path, "a")
    facts = {**json.loads(path.read_text()), **change}
    path.write_text(json.dumps({key: value for key, value in facts.items() if value is not ...}))
    with pytest.raises(InputError, match=said):
        read_multi_echo(tmp_path, "a")


def test_missing_files_and_volumes_of_three_axes_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"a\.json does not exist"):
        read_multi_echo(tmp_path, "a")
    write_multi_echo(stack(), tmp_path, "a")
    image_path, _ = paths_of(tmp_path, "a")
    sitk.WriteImage(stack().images[0], str(image_path))
    with pytest.raises(InputError, match="has 3 axes"):
        read_multi_echo(tmp_path, "a")


def test_echoes_of_different_sizes_or_numbers_are_refused():
    whole = stack()
    with pytest.raises(InputError, match="There are 2 echoes, but 3 echo times"):
        MultiEcho(whole.images[:2], whole.echo_times_ms, "left", "1", "a")
    with pytest.raises(GeometryError, match="one size"):
        MultiEcho((*whole.images[:2], whole.images[2][:, :, :2]), whole.echo_times_ms, "left", "1", "a")


@given(st.lists(st.floats(1.5, 500), min_size=1, max_size=12, unique=True))
def test_only_ascending_times_pass_and_their_seconds_never(times_ms):
    check_echo_times(sorted(times_ms))
    with pytest.raises(InputError, match="seem to be seconds"):
        check_echo_times([time_ms / 1000 for time_ms in sorted(times_ms)])
    if len(times_ms) > 1:
        with pytest.raises(InputError, match="must ascend"):
            check_echo_times(sorted(times_ms, reverse=True))


@pytest.mark.parametrize(
    ("times_ms", "said"),
    [
        ([], "no echo times"),
        ([0, 10], "positive"),
        ([-1, 10], "positive"),
        ([10, np.inf], "positive"),
        ([10, np.nan], "positive"),
        ([10, 10], "ascend"),
    ],
)
def test_times_that_are_none(times_ms, said):
    with pytest.raises(InputError, match=f"here: .*{said}"):
        check_echo_times(times_ms, "here: ")


def test_a_first_echo_below_1_ms_is_no_second():
    check_echo_times([0.03, 4.4, 8.8])
