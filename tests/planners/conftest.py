"""Plans made from a fingerprint that is written down, without images to take it from."""

import json

import pytest


@pytest.fixture
def plan_from(monkeypatch, tmp_path):
    """Make plans for cases with these shapes and spacings (z, y, x); ``write_images`` fills the raw folder before."""

    def make(cls, shapes, spacings_mm, memory_gb=8, *, labels, channels=("T1",), write_images=None):
        raw, preprocessed = (tmp_path / name / "Dataset101_Test" for name in ("raw", "preprocessed"))
        monkeypatch.setenv("nnUNet_raw", str(raw.parent))
        monkeypatch.setenv("nnUNet_preprocessed", str(preprocessed.parent))
        for folder in (raw / "imagesTr", raw / "labelsTr", preprocessed):
            folder.mkdir(parents=True, exist_ok=True)
        if write_images is not None:
            write_images(raw)
        description = {
            "channel_names": {str(index): name for index, name in enumerate(channels)},
            "labels": {"background": 0, **labels},
            "numTraining": len(shapes),
            "file_ending": ".nii.gz",
        }
        (raw / "dataset.json").write_text(json.dumps(description))
        properties = dict.fromkeys(("mean", "std", "percentile_00_5", "percentile_99_5", "median", "min", "max"), 1)
        fingerprint = {
            "spacings": spacings_mm,
            "shapes_after_crop": shapes,
            "foreground_intensity_properties_per_channel": {str(index): properties for index in range(len(channels))},
            "median_relative_size_after_cropping": 1.0,
        }
        (preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
        made = cls("Dataset101_Test", gpu_memory_target_in_gb=memory_gb)
        monkeypatch.setattr(made, "determine_reader_writer", lambda: type("SimpleITKIO", (), {}))
        if write_images is None:
            monkeypatch.setattr(type(made), "dataset", {"case": {"images": [], "label": ""}}, raising=False)
        made.plan_experiment()
        return json.loads((preprocessed / f"{made.plans_identifier}.json").read_text())

    return make
