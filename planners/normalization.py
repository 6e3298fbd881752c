"""Normalisation schemes of our own."""

from __future__ import annotations

import numpy as np
from nnunetv2.preprocessing.normalization.default_normalization_schemes import ImageNormalization, ZScoreNormalization

from nnunet_anomaly.errors import SettingsError

# Keys of the intensity properties in the plans, for statistics of all training cases together.
QUARTILE_STATISTICS = ("anomaly_quartile_mean", "anomaly_quartile_scale")


class ZScoreClipped01Normalization(ZScoreNormalization):
    """z-score, clip at +-``anomaly_clip_sd`` (default 5) and rescale to [0, 1] (Woo, appendix A).

    On this scale one standard deviation is 0.1, so that error maps are comparable between cases and the mean is 0.5.
    Outside the non-zero mask, where it is used, values are 0. A constant image becomes 0.5.
    """

    leaves_pixels_outside_mask_at_zero_if_use_mask_for_norm_is_true = True

    def run(self, image: np.ndarray, seg: np.ndarray | None = None) -> np.ndarray:
        """Normalise one channel (spatial shape); ``seg`` is negative outside the non-zero mask."""
        clip_sd = float(self.intensityproperties.get("anomaly_clip_sd", 5.0))
        image = super().run(image, seg)
        np.clip(image, -clip_sd, clip_sd, out=image)
        image += clip_sd
        image /= 2 * clip_sd
        if seg is not None and self.use_mask_for_norm:
            image[seg < 0] = 0
        return image


class QuartileNormalization(ImageNormalization):
    """(x - mean) / (q75 - q25) of the voxels from 0 HU on; voxels below 0 HU become 0 HU before (Xu, pre-processing).

    The statistics are those of the case itself and leave voxels below 0 HU out, so that air around the body does not
    count. Where the quartiles are equal the standard deviation of the same voxels takes their place; a constant image
    and one without any voxel from 0 HU on become 0. The non-zero mask is not used.
    """

    leaves_pixels_outside_mask_at_zero_if_use_mask_for_norm_is_true = False

    def run(self, image: np.ndarray, seg: np.ndarray | None = None) -> np.ndarray:
        """Normalise one channel (spatial shape, HU); ``seg`` is not used."""
        image = image.astype(self.target_dtype, copy=False)
        mean, scale = self.statistics(image)
        np.maximum(image, 0, out=image)
        image -= mean
        image /= scale
        return image

    def statistics(self, image: np.ndarray) -> tuple[float, float]:
        """Mean and scale in HU; the scale is never 0."""
        values = image[image >= 0]
        if not values.size:
            return 0.0, 1.0
        low, high = np.percentile(values, (25, 75))
        spread = float(high - low) or float(values.std(dtype=np.float64))
        return float(values.mean(dtype=np.float64)), spread or 1.0


class QuartileFingerprintNormalization(QuartileNormalization):
    """The same by the statistics of all training cases together, which ``nnunet-anomaly plan`` puts into the plans."""

    def statistics(self, image: np.ndarray) -> tuple[float, float]:
        """Mean and scale in HU from the plans.

        Raises:
            SettingsError: the plans have none.
        """
        missing = [key for key in QUARTILE_STATISTICS if key not in self.intensityproperties]
        if missing:
            raise SettingsError(
                f"The plans have no {' and no '.join(missing)}, which normalisation by quartiles of all training cases "
                "needs. Make them by: nnunet-anomaly plan --set intensity.ct=quartile_fingerprint"
            )
        mean, scale = (float(self.intensityproperties[key]) for key in QUARTILE_STATISTICS)
        return mean, scale


class MedianQuartileNormalization(ImageNormalization):
    """Median to 0, 25th percentile to -1, 75th to 1, straight between and beyond, cut off at the 3rd and 97th (Thomas).

    The paper (section 2.3) asks for three values, which one shift and one scale cannot give unless the quartiles lie
    evenly: each side of the median has a scale of its own. Percentiles are those of one channel of one case, of all
    voxels within the box that nnU-Net crops to; the non-zero mask is not used.

    Where the median equals one quartile, that side has the scale of the other one. Where it equals both, the standard
    deviation of the trimmed values takes their place. Where trimming leaves one value, as of a constant image or of a
    single voxel, all become 0. No voxels give no voxels.
    """

    leaves_pixels_outside_mask_at_zero_if_use_mask_for_norm_is_true = False

    def run(self, image: np.ndarray, seg: np.ndarray | None = None) -> np.ndarray:
        """Normalise one channel (spatial shape); ``seg`` is not used."""
        image = image.astype(self.target_dtype, copy=True)
        if not image.size:
            return image
        lowest, low, median, high, highest = np.percentile(image.astype(np.float64), (3, 25, 50, 75, 97))
        np.clip(image, lowest, highest, out=image)
        below, above = float(median - low), float(high - median)
        spread = below or above or float(image.std(dtype=np.float64)) or 1.0
        image -= median
        image /= np.where(image < 0, below or spread, above or spread)
        return image
