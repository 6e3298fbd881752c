import numpy as np
import pytest
import torch
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
from torch import nn

from nnunet_anomaly.architectures.anomaly_aware_end_to_end import AnomalyAwareEndToEnd
from nnunet_anomaly.architectures.inpainting_unet import InpaintingUNet
from nnunet_anomaly.error_maps.predict import error_map, mean_reconstruction, reconstruct
from nnunet_anomaly.planners.normalization import ZScoreClipped01Normalization


def reconstructor(dimension=3, channels=1, code_channels=0, seed=0):
    torch.manual_seed(seed)
    architecture = {
        "n_stages": 3,
        "features_per_stage": [4, 6, 8],
        "conv_op": getattr(nn, f"Conv{dimension}d"),
        "kernel_sizes": [[3] * dimension] * 3,
        "strides": [[1] * dimension, [2] * dimension, [1, *[2] * (dimension - 1)]],
        "n_conv_per_stage": [1] * 3,
        "n_conv_per_stage_decoder": [1] * 2,
        "conv_bias": True,
        "norm_op": getattr(nn, f"InstanceNorm{dimension}d"),
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": nn.LeakyReLU,
        "nonlin_kwargs": {"inplace": True},
    }
    network = InpaintingUNet(channels, architecture, code_channels, "interpolated", erase=False)
    with torch.no_grad():  # it is to answer to the image
        network.to_image.weight.mul_(10)
    return network.eval()


class Seen(nn.Module):
    """Stands in for S: gives its input back."""

    def forward(self, x):
        return x


def end_to_end(networks, spacing_mm=(1.0, 1.0, 1.0), coarse_mm=(1.0, 1.0, 1.0), channels=1, labels=0, clip_sd=5.0):
    return AnomalyAwareEndToEnd(Seen(), networks, channels, channels + labels, spacing_mm, coarse_mm, clip_sd).eval()


def z_scored(shape, channels=1, seed=0):
    """A batch of one raw image normalised as S's configurations do, and the same image as A's do."""
    raw = np.random.default_rng(seed).gamma(1.0, size=(channels, *shape)).astype(np.float32)  # some beyond 5 SD
    scheme = ZScoreClipped01Normalization(use_mask_for_norm=False, intensityproperties={"anomaly_clip_sd": 5.0})
    clipped = np.stack([scheme.run(channel.copy()) for channel in raw])
    z_scores = np.stack([(channel - channel.mean()) / channel.std() for channel in raw])
    return torch.from_numpy(z_scores)[None], torch.from_numpy(clipped)


@pytest.mark.parametrize("code_channels", [0, 3])
@pytest.mark.parametrize(("shape", "channels"), [((8, 12, 16), 1), ((7, 13, 9), 2), ((1, 1, 3), 1), ((16, 24), 1)])
def test_on_one_patch_it_is_the_stand_alone_path(shape, channels, code_channels):
    network = reconstructor(len(shape), channels, code_channels)
    spacing_mm = (1.0,) * len(shape)
    whole = end_to_end([network], spacing_mm, spacing_mm, channels)
    z_scores, clipped = z_scored(shape, channels)
    with torch.no_grad():
        found = whole(z_scores)
    reconstruction = reconstruct(network, clipped, whole.window(shape))
    expected = error_map(clipped, reconstruction, torch.ones(1, *shape))
    assert float(expected.max()) > 1e-2
    torch.testing.assert_close(found[0, channels:], expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(found[:, :channels], z_scores)


@pytest.mark.parametrize(
    ("shape", "spacing_mm", "coarse_mm"),
    [
        ((20, 24, 18), (0.8, 0.5, 0.5), (1.6, 1.3, 1.3)),
        ((9, 12, 14), (3.0, 0.5, 0.5), (3.0, 1.5, 1.5)),
        ((10, 10, 10), (1.0, 1.0, 1.0), (0.7, 0.7, 0.7)),
        ((21, 30), (0.5, 0.4), (1.2, 1.2)),
    ],
)
def test_on_another_grid_it_is_the_stand_alone_path_with_nnunets_linear_resampling(shape, spacing_mm, coarse_mm):
    network = reconstructor(len(shape))
    whole = end_to_end([network], spacing_mm, coarse_mm)
    z_scores, clipped = z_scored(shape)
    with torch.no_grad():
        found = whole(z_scores)[0, 1:]

    def resample(values, target):
        values, flat = values.numpy(), len(shape) == 2
        values, target = (values[:, None], (1, *target)) if flat else (values, target)
        sizes = [[1.0] * 3] * 2
        made = resample_data_or_seg_to_shape(values, target, *sizes, is_seg=False, order=1, force_separate_z=False)
        return torch.as_tensor(np.asarray(made))[:, 0] if flat else torch.as_tensor(np.asarray(made))

    on_grid = resample(clipped, whole.shape_of_reconstruction(shape))
    reconstruction = reconstruct(network, on_grid, whole.window(on_grid.shape[1:]))
    expected = resample(error_map(on_grid, reconstruction, torch.ones(1, *on_grid.shape[1:])), shape)
    assert float(expected.max()) > 1e-3
    torch.testing.assert_close(found, expected.float(), atol=1e-5, rtol=1e-4)


def test_of_several_networks_it_is_the_mean_reconstruction():
    networks = [reconstructor(seed=seed) for seed in range(3)]
    whole = end_to_end(networks)
    z_scores, clipped = z_scored((8, 8, 8))
    with torch.no_grad():
        found = whole(z_scores)[0, 1:]
    weights = [network.state_dict() for network in networks]
    mean = mean_reconstruction(reconstructor(), weights, clipped, whole.window((8, 8, 8)))
    torch.testing.assert_close(found, error_map(clipped, mean, torch.ones(1, 8, 8, 8)), atol=1e-6, rtol=1e-5)


def test_each_sample_meets_its_own_network():
    networks = [reconstructor(seed=seed) for seed in range(3)]
    whole = end_to_end(networks[:1])
    batch = torch.cat([z_scored((8, 8, 8), seed=seed)[0] for seed in range(4)])
    chosen = [networks[index] for index in (2, 1, 2, 0)]
    with torch.no_grad():
        alone = torch.cat([end_to_end([one])(sample[None]) for one, sample in zip(chosen, batch, strict=True)])
        with whole.reconstructed_by(chosen):
            together = whole(batch)
            assert torch.equal(whole.error, together[:, 1:])
        assert whole.error is None
        torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)
        assert not torch.allclose(whole(batch)[0], alone[0], atol=1e-4)  # its own again
    with (
        pytest.raises(ValueError, match="3 reconstruction networks for a batch of 4"),
        whole.reconstructed_by(networks),
    ):
        whole(batch)


def test_a_sees_the_channels_that_are_not_augmented_and_s_the_labels_of_a_cascade():
    whole = end_to_end([reconstructor()], labels=2)
    clean, augmented = z_scored((8, 8, 8), seed=0)[0], z_scored((8, 8, 8), seed=1)[0]
    labels = torch.rand(1, 2, 8, 8, 8)
    with torch.no_grad():
        found = whole(torch.cat((augmented, clean, labels), 1))
        expected = whole(torch.cat((clean, labels), 1))
    assert torch.equal(found, torch.cat((augmented, labels, expected[:, 3:]), 1))


def test_padding_is_no_anomaly():
    whole = end_to_end([reconstructor()])
    padded = torch.zeros(1, 1, 16, 16, 16)
    padded[..., 4:12, 4:12, 4:12] = z_scored((8, 8, 8))[0]
    with torch.no_grad():
        error = whole(padded)[:, 1:]
        assert torch.count_nonzero(error[padded == 0]) == 0
        assert torch.count_nonzero(error) > 400
        assert torch.count_nonzero(whole(torch.zeros_like(padded))) == 0


@pytest.mark.parametrize("coarse_mm", [0.7, 1.0, 1.6])
def test_the_edge_of_padding_is_as_bright_as_the_image(coarse_mm):
    whole = end_to_end([reconstructor()], coarse_mm=(coarse_mm,) * 3)
    padded = torch.zeros(1, 1, 20, 20, 20)
    padded[..., 5:14, 4:15, 3:17] = 1.5  # z-scores
    scaled, inside = whole.on_grid_of_reconstruction(padded)
    assert 0 < inside.mean() < 1
    torch.testing.assert_close(scaled, 0.65 * inside)


def test_the_error_map_is_in_single_precision_under_autocast():
    whole = end_to_end([reconstructor()])
    image = z_scored((8, 8, 8))[0]
    with torch.no_grad(), whole.reconstructed_by(list(whole.reconstructors)):
        whole(image)
        expected = whole.error
        with torch.autocast("cpu", torch.bfloat16):
            whole(image)
        assert whole.error.dtype == torch.float32
        assert torch.equal(whole.error, expected)


def test_a_stays_in_evaluation_mode_and_s_does_not():
    whole = end_to_end([reconstructor()]).train()
    assert whole.segmenter.training and not whole.reconstructors[0].training


def test_compiled_each_call_meets_its_networks():
    networks = [reconstructor(seed=seed) for seed in range(2)]
    whole = end_to_end(networks[:1])
    compiled = torch.compile(whole, backend="eager")
    batch = torch.cat([z_scored((8, 8, 8), seed=seed)[0] for seed in range(2)])
    for chosen in (networks, networks[::-1], networks[1:]):
        with torch.no_grad(), whole.reconstructed_by(chosen):
            found = compiled(batch)
            torch.testing.assert_close(found, whole(batch))
            assert torch.equal(whole.error, found[:, 1:])


def test_several_gpus_get_a_gradient_for_every_network_that_learns(tmp_path):
    networks = [reconstructor(seed=seed) for seed in range(3)]
    whole = end_to_end(networks).train()
    torch.distributed.init_process_group("gloo", (tmp_path / "store").as_uri(), rank=0, world_size=1)
    try:
        parallel = torch.nn.parallel.DistributedDataParallel(whole)
        for chosen in (networks[:1], networks[1:2], networks[2:]):  # would raise at the second step
            whole.zero_grad()
            with whole.reconstructed_by(chosen):
                parallel(z_scored((8, 8, 8))[0])[:, 1:].mean().backward()
            learnt = [bool(network.to_image.weight.grad.any()) for network in networks]
            assert learnt == [network is chosen[0] for network in networks]
    finally:
        torch.distributed.destroy_process_group()


def test_without_a_network_it_is_refused():
    with pytest.raises(ValueError, match="no reconstruction network"):
        end_to_end([])
