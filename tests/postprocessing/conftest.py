"""A folder of cases, as the commands of post-processing read and write them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk


class CaseFolder:
    """Images, label maps and tables by their paths below a folder."""

    spacing_mm = (3.0, 0.5, 0.5)

    def __init__(self, path: Path):
        self.path = path

    def __truediv__(self, name: str | Path) -> Path:
        return self.path / name

    def write(self, array: np.ndarray, name: str, spacing_mm: tuple[float, ...] = spacing_mm) -> None:
        """Write an array (z, y, x), or (y, x), as an image."""
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(spacing_mm[::-1])
        image.SetOrigin((1, -2, 3)[: array.ndim])
        (self / name).parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(image, str(self / name))

    def read(self, name: str | Path) -> np.ndarray:
        """The array of an image."""
        return sitk.GetArrayFromImage(sitk.ReadImage(str(self / name)))

    def rows(self, name: str) -> list[dict[str, str]]:
        """The rows of a CSV file."""
        with open(self / name, newline="", encoding="utf-8") as handle:
            return list(csv.DictReader(handle))

    def json(self, name: str) -> Any:
        """The content of a JSON file."""
        return json.loads((self / name).read_text(encoding="utf-8"))


@pytest.fixture
def case_folder(tmp_path: Path) -> CaseFolder:
    """An empty one."""
    return CaseFolder(tmp_path)
