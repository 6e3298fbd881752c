"""The demo: every stage of the main job on generated knees, as console commands that are printed before they run.

In 2-D (sagittal slices), because two cores can learn that in minutes; ``3d_fullres`` and ``3d_inpainting`` are the same
commands with another ``-c``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nnunet_anomaly.files import load_json, written_whole
from nnunet_anomaly.workflow.chain import Chain

PLANS = "nnUNetAnomalyTinyPlans"
GRID = ("32", "80", "80")  # of 3.5 x 1.75 x 1.75 mm: what two cores learn in minutes
METHODS = {"plain": "plain nnU-Net", "augmentation": "lesion augmentation", "aware": "anomaly-aware"}


class KneeDemo(Chain):
    """Woo's chain on generated knees: G, A, error maps, the segmentation networks, evaluation."""

    def report(self, stages: Mapping[str, Any]) -> Path:
        """Tables and overlays."""
        from nnunet_anomaly.workflow.demo_report import write_report

        return write_report(self.folder, METHODS, stages)

    def stages(self) -> Iterator[tuple[str, list[list[str]]]]:
        """See ``Chain``."""
        yield (
            "generate knees",
            [
                self.phantom(self.cases, 1, "mild", "release"),
                self.phantom(self.test_cases, 2, "severe", "release_test"),
            ],
        )
        yield (
            "convert",
            [
                self.convert("release", "101", "Knee", "--two-fold"),
                self.convert("release_test", "102", "KneeTest"),
            ],
        )
        yield "plan and preprocess", [self.preprocess("101", "2d", "2d_inpainting")]
        for fold in ("0", "1"):
            yield f"G, fold {fold}", [self.train("101", "2d_inpainting", fold, "Inpainting")]
            yield f"A, fold {fold}", [self.train("101", "2d_inpainting", fold, "InpaintingMimic")]
        yield (
            "out-of-fold error maps as a channel",
            [
                self.error_maps("-o", "Dataset201_KneeErrorMaps"),
                self.preprocess("201", "2d"),
            ],
        )
        yield "plain nnU-Net", [self.train("101", "2d", "all", "Seeded")]
        yield "lesion augmentation", [self.train("101", "2d", "all", "AnomalyAugmentation")]
        yield "anomaly-aware", [self.train("201", "2d", "all", "AnomalyAware")]
        images = str(self.raw("102") / "imagesTr")
        yield (
            "error maps of the held-out knees",
            [self.error_maps("-i", images, "-o", self.path("test_with_error_maps"))],
        )
        yield (
            "predict the held-out knees",
            [
                self.predict("101", "Seeded", images, "plain"),
                self.predict("101", "AnomalyAugmentation", images, "augmentation"),
                self.predict("201", "AnomalyAware", self.path("test_with_error_maps"), "aware"),
            ],
        )
        yield (
            "clean components",
            [
                ["nnunet-anomaly", "postprocess", "-i", self.path("predicted", name), "-o", self.path("cleaned", name)]
                for name in METHODS
            ],
        )
        yield "anomaly masks", [self.anomalies()]
        yield "evaluate", [self.evaluate(), self.evaluate_anomaly()]

    def phantom(self, cases: int, seed: int, lesions: str, name: str) -> list[str]:
        """Command that makes knees."""
        command = ["nnunet-anomaly", "phantom", "knee", "--cases", str(cases), "--seed", str(seed)]
        return [*command, "--lesions", lesions, "--grid", *GRID, "-o", self.path(name), "-np", "2"]

    def convert(self, name: str, dataset: str, title: str, *more: str) -> list[str]:
        """Command that converts a release."""
        command = ["nnunet-anomaly", "convert", "oai-zib", self.path(name, "OAI-ZIB"), "--oai-root"]
        return [*command, self.path(name, "oai"), "-d", dataset, "--name", title, "-np", "2", *more]

    def preprocess(self, dataset: str, *configurations: str) -> list[str]:
        """nnU-Net's planning and preprocessing."""
        command = ["nnUNetv2_plan_and_preprocess", "-d", dataset, "-pl", "nnUNetPlannerAnomalyTiny"]
        return [*command, "-c", *configurations, "-np", "2", "-npfp", "2"]

    def train(self, dataset: str, configuration: str, fold: str, trainer: str) -> list[str]:
        """nnU-Net's training."""
        command = ["nnUNetv2_train", dataset, configuration, fold, "-tr", self.trainer(trainer)]
        return [*command, "-p", PLANS, "-device", self.device]

    def predict(self, dataset: str, trainer: str, images: str, name: str) -> list[str]:
        """nnU-Net's prediction."""
        command = ["nnUNetv2_predict", "-d", dataset, "-c", "2d", "-f", "all", "-tr", self.trainer(trainer)]
        command += ["-p", PLANS, "-i", images, "-o", self.path("predicted", name)]
        return [*command, "-device", self.device, "-npp", "1", "-nps", "1", "--disable_progress_bar"]

    def error_maps(self, *where: str) -> list[str]:
        """Error maps by A."""
        command = ["nnunet-anomaly", "error-maps", "-d", "101", "-c", "2d_inpainting", "-p", PLANS]
        command += ["-tr", self.trainer("InpaintingMimic")]
        return [*command, *where, "-np", "2", "-device", self.device]

    def anomalies(self) -> list[str]:
        """Anomaly masks, calibrated on the training cases that are known to have no lesion."""
        cases = load_json(self.folder / "release" / "truth" / "lesions.json")["cases"]
        healthy = self.folder / "lesion_free_cases.txt"
        with written_whole(healthy) as temporary:
            temporary.write_text("".join(f"{case}\n" for case, truth in cases.items() if not truth["has_lesions"]))
        command = ["nnunet-anomaly", "anomalies", "-i", self.path("test_with_error_maps"), "-d", "201", "-np", "2"]
        command += ["-s", self.path("cleaned", "aware"), "-o", self.path("anomalies")]
        return [*command, "--healthy-cases", str(healthy)]

    def evaluate(self) -> list[str]:
        """All methods, before and after cleaning, against the reference."""
        names = [f"{name}{suffix}" for suffix in ("", "_cleaned") for name in METHODS]
        folders = [self.path(stage, name) for stage in ("predicted", "cleaned") for name in METHODS]
        command = ["nnunet-anomaly", "evaluate", "-ref", str(self.raw("102") / "labelsTr")]
        for folder in folders:
            command += ["-pred", folder]
        return [*command, "--names", *names, "-o", self.path("evaluation"), "-np", "2"]

    def evaluate_anomaly(self) -> list[str]:
        """Error maps against the true lesions inside bone, beside raw intensity."""
        command = ["nnunet-anomaly", "evaluate-anomaly", "-ref", self.path("release_test", "truth", "lesions")]
        command += ["-pred", self.path("test_with_error_maps"), "--channel", "1", "--names", "error_map"]
        command += ["-m", str(self.raw("102") / "labelsTr"), "--mask-labels", "1", "3"]
        return [*command, "--baseline", self.path("test_with_error_maps"), "-o", self.path("evaluation_anomaly")]
