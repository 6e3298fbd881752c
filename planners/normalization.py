"""Normalisation schemes of our own."""

from __future__ import annotations

import numpy as np
from nnunetv2.preprocessing.normalization.default_normalization_schemes import ZScoreNormalization


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
