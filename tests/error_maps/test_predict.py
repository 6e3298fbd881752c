from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_anomaly.error_maps.predict import (
    error_map,
    mean_reconstruction,
    reconstruct,
    save_in_original_geometry,
    to_original_grid,
    windows,
)
from nnunet_anomaly.errors import GeometryError, InputError


class Local(torch.nn.Module):
    """Gives more channels than it takes, and sees one voxel at a time: its result does not depend on windows."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(factor))

    def forward(self, x):
        return torch.cat((x * self.factor, x.square() + 1e-3, -x), 1)


@given(st.tuples(*[st.integers(3, 14)] * 3), st.tuples(*[st.integers(2, 8)] * 3))
@settings(max_examples=25, deadline=None)
def test_windows_do_not_show(shape, patch_size):
    volume = torch.rand(1, *shape)
    result = reconstruct(Local(), volume, patch_size)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, Local()(volume[None])[0].detach(), rtol=0, atol=2e-6)


def test_one_window_is_one_forward_pass_exactly():
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv3d(4, 2, 3, padding=1)
    )
    volume = torch.rand(1, 8, 12, 10)
    whole = network(volume[None])[0].detach()
    torch.testing.assert_close(reconstruct(network, volume, (8, 12, 10)), whole, rtol=1e-6, atol=1e-7)


def test_values_that_half_precision_would_lose_are_kept():
    volume = torch.full((1, 4, 4, 4), 1e-4) + torch.arange(64).reshape(1, 4, 4, 4) * 1e-9
    result = reconstruct(Local(), volume, (4, 4, 4))[:1]
    torch.testing.assert_close(result, volume, rtol=1e-6, atol=0)


def test_a_2d_network_sees_every_slice():
    volume = torch.rand(1, 5, 9, 7)
    result = reconstruct(Local(), volume, (4, 4))
    torch.testing.assert_close(result, Local()(volume[None])[0].detach(), rtol=0, atol=2e-6)
    assert len(list(windows((5, 9, 7), (9, 7), 0.5))) == 5


def test_folds_are_averaged():
    volume = torch.rand(1, 4, 4, 4)
    parameters = [Local(factor).state_dict() for factor in (1.0, 2.0, 6.0)]
    result = mean_reconstruction(Local(), parameters, volume, (4, 4, 4))
    torch.testing.assert_close(result[:1], 3 * volume)
    with pytest.raises(ValueError, match="no set of weights"):
        mean_reconstruction(Local(), [], volume, (4, 4, 4))


def test_the_error_is_the_mean_square_over_channels():
    image, reconstruction = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.0], [2.0, 4.0]])
    everywhere = torch.ones(1, 2, dtype=torch.bool)
    assert error_map(image, reconstruction, everywhere).tolist() == [[0.5, 2.0]]
    assert error_map(image, reconstruction, torch.tensor([[True, False]])).tolist() == [[0.5, 0.0]]
    with pytest.raises(GeometryError):
        error_map(image, reconstruction[:1], everywhere)


def test_an_output_that_is_the_error_is_averaged_over_channels():
    image, output, inside = torch.rand(2, 3, 4, 5), torch.rand(2, 3, 4, 5), torch.rand(1, 3, 4, 5) > 0.5
    torch.testing.assert_close(error_map(image, output, inside, "output")[0], (output[0] + output[1]) / 2 * inside[0])


def case(shape=(6, 8, 10), crop=((1, 6), (0, 8), (2, 10)), spacing_mm=(3.0, 1.0, 2.0)):
    plans = SimpleNamespace(transpose_forward=[2, 0, 1], transpose_backward=[1, 2, 0])
    forward = [shape[axis] for axis in plans.transpose_forward]
    properties = {
        "spacing": list(spacing_mm),
        "shape_before_cropping": forward,
        "shape_after_cropping_and_before_resampling": [high - low for low, high in crop],
        "bbox_used_for_cropping": [list(box) for box in crop],
        "sitk_stuff": {"spacing": spacing_mm[::-1], "origin": (1.0, 2.0, 3.0), "direction": np.eye(3).ravel().tolist()},
    }
    return plans, properties


def test_crop_and_transpose_are_undone_and_the_rest_is_zero():
    shape, spacing_mm = (6, 8, 10), (3.0, 1.0, 2.0)
    crop = ((1, 9), (0, 6), (2, 8))  # in transposed order: axes 2, 0, 1
    plans, properties = case(shape, crop, spacing_mm)
    whole = np.random.default_rng(0).random(shape).astype(np.float32)
    transposed = whole.transpose(plans.transpose_forward)
    inside = tuple(slice(low, high) for low, high in crop)
    result = to_original_grid(torch.from_numpy(transposed[inside][None].copy()), properties, plans, (2.0, 3.0, 1.0))
    expected = np.zeros_like(transposed)
    expected[inside] = transposed[inside]
    np.testing.assert_allclose(result[0], expected.transpose(plans.transpose_backward), atol=1e-6)


def test_resampling_is_linear_also_across_thick_slices():
    plans = SimpleNamespace(transpose_forward=[0, 1, 2], transpose_backward=[0, 1, 2])
    properties = {
        "spacing": [1.0, 1.0, 1.0],
        "shape_before_cropping": [16, 4, 4],
        "shape_after_cropping_and_before_resampling": [16, 4, 4],
        "bbox_used_for_cropping": [[0, 16], [0, 4], [0, 4]],
    }
    ramp = torch.arange(4.0).reshape(1, 4, 1, 1).expand(1, 4, 4, 4).contiguous()
    result = to_original_grid(ramp, properties, plans, (4.0, 1.0, 1.0))[0, :, 0, 0]
    np.testing.assert_allclose(np.diff(result[2:14]), 0.25, atol=1e-5)  # nearest neighbour would give steps


def test_a_map_is_written_in_the_original_geometry(tmp_path):
    plans, properties = case(crop=((0, 10), (0, 6), (0, 8)))
    values = torch.rand(1, 10, 6, 8)
    save_in_original_geometry(values, [tmp_path / "case.nii.gz"], properties, plans, (2.0, 3.0, 1.0))
    image = sitk.ReadImage(str(tmp_path / "case.nii.gz"))
    assert image.GetPixelID() == sitk.sitkFloat32
    assert image.GetSpacing() == (2.0, 1.0, 3.0) and image.GetOrigin() == (1.0, 2.0, 3.0)
    np.testing.assert_allclose(sitk.GetArrayFromImage(image), values[0].numpy().transpose(1, 2, 0), atol=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["case.nii.gz"]


def test_another_reader_is_refused(tmp_path):
    plans, properties = case()
    del properties["sitk_stuff"]
    with pytest.raises(InputError, match="SimpleITKIO"):
        save_in_original_geometry(torch.rand(1, 8, 5, 8), [tmp_path / "x.nii.gz"], properties, plans, (2.0, 3.0, 1.0))
