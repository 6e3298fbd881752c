"""The brain demo: networks that know healthy heads alone find strokes, on generated heads, by console commands.

In 2-D and on 32 voxels along every axis, because two cores can learn that in minutes; ``3d_whole`` is the same with
another ``-c``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nnunet_anomaly.files import load_json
from nnunet_anomaly.report.page import Page
from nnunet_anomaly.workflow.chain import Chain

PLANS = "nnUNetWholeVolumeTinyPlans"
HEALTHY_MEAN = "HealthyMean"
METHODS = {
    "VAE": "VAE, nothing erased",
    "VAECubeNoise": "VAE, patches erased with noise",
    HEALTHY_MEAN: "z-score to the healthy mean",
}
# one window of 3 voxels of the generated heads' 2.5 mm
MEDIAN_RADIUS_MM = "2.5"


class BrainDemo(Chain):
    """Bengs' chain on generated heads: VAEs of healthy heads, error maps of strokes, evaluation."""

    def stages(self) -> Iterator[tuple[str, list[list[str]]]]:
        """See ``Chain``."""
        heads = ["--healthy", str(self.cases), "--strokes", str(2 * self.test_cases), "--seed", "1"]
        yield "generate heads", [["nnunet-anomaly", "phantom", "brain", *heads, "-o", self.path("release"), "-np", "2"]]
        roles = ["--validation", str(self.test_cases), "--test", str(self.test_cases)]
        yield (
            "convert",
            [
                self.convert("healthy", "IXI-T1", "301", "Healthy", "--validation", str(max(1, self.cases // 10))),
                self.convert("atlas", "ATLAS_2", "302", "Strokes", *roles),
            ],
        )
        command = ["nnUNetv2_plan_and_preprocess", "-d", "301", "-pl", "nnUNetPlannerWholeVolumeTiny"]
        yield (
            "plan and preprocess",
            [[*command, "-c", "3d_whole", "-np", "2", "-npfp", "2"]],
        )  # 2d_whole takes its slices
        for name, title in METHODS.items():
            yield title, [self.train(name)]
        for role in ("Tr", "Ts"):  # validation cases, test cases
            title = "error maps of strokes, " + ("validation" if role == "Tr" else "test")
            yield title, [self.error_maps(name, role) for name in METHODS]
        yield "evaluate", [self.evaluate()]

    def convert(self, release: str, folder: str, dataset: str, title: str, *more: str) -> list[str]:
        """Command that converts a release."""
        command = ["nnunet-anomaly", "convert", release, self.path("release", folder), "-d", dataset, "--name", title]
        return [*command, "--brain-masks", self.path("release", "truth", "brain"), *more, "-np", "2"]

    def full_name(self, name: str) -> str:
        """Trainer of the demo's number of epochs; the mean of healthy heads is not trained."""
        return f"nnUNetTrainer{name}" if name == HEALTHY_MEAN else self.trainer(name)

    @staticmethod
    def configuration(name: str) -> str:
        """Networks learn in 2-D; a mean needs no learning, and one of all slices would say little."""
        return "3d_whole" if name == HEALTHY_MEAN else "2d_whole"

    def train(self, name: str) -> list[str]:
        """nnU-Net's training on the one fold that the converter made."""
        command = ["nnUNetv2_train", "301", self.configuration(name), "0", "-tr", self.full_name(name), "-p", PLANS]
        return [*command, "-device", self.device]

    def error_maps(self, name: str, role: str) -> list[str]:
        """Error maps of images that no network has seen."""
        command = ["nnunet-anomaly", "error-maps", "-d", "301", "-tr", self.full_name(name), "-p", PLANS]
        command += ["-c", self.configuration(name), "-f", "0", "-np", "1", "-device", self.device]
        if name != HEALTHY_MEAN:
            command += ["-chk", "checkpoint_best.pth"]
        if role == "Ts":
            command += ["--save-reconstructions", self.path("reconstructions", name)]
        return [*command, "-i", str(self.raw("302") / f"images{role}"), "-o", self.path(f"maps{role}", name)]

    def evaluate(self) -> list[str]:
        """All maps and the plain intensity against the true lesions; thresholds from validation cases."""
        raw = self.raw("302")
        command = ["nnunet-anomaly", "evaluate-anomaly", "-ref", str(raw / "lesionsTs"), "-m", str(raw / "labelsTs")]
        command += ["--validation-ref", str(raw / "lesionsVal"), "--validation-mask", str(raw / "labelsTr")]
        for name in METHODS:
            command += ["-pred", self.path("mapsTs", name), "--validation-pred", self.path("mapsTr", name)]
            command += ["--reconstructions", self.path("reconstructions", name)]
        command += ["--baseline", str(raw / "imagesTs"), "--validation-baseline", str(raw / "imagesTr")]
        command += ["--baseline-dark", "--median-radius-mm", MEDIAN_RADIUS_MM, "--channel", "1", "--names", *METHODS]
        return [*command, "-o", self.path("evaluation"), "-np", "2"]

    def report(self, stages: Mapping[str, Any]) -> Path:
        """The table with filters off and on, and pictures of heads beside their residuals."""
        page = Page("nnunet-anomaly demo: strokes in generated heads", self.folder)
        page.text(
            "Every network is tiny and hardly trained, on healthy heads alone: this shows that the chain works and "
            "what it writes, not how well a method does. Strokes are dark on T1, so that the plain intensity, dark as "
            "anomalous, is what a network has to beat."
        )
        page.section("Finding strokes")
        page.text(
            "`dice` and `dice_subject` at the threshold of the validation cases; `oracle` is the best in hindsight."
        )
        rows = detection_rows(self.folder / "evaluation")
        page.table(rows, formats=dict.fromkeys(list(rows[0])[2:], ".3f"))
        page.section("Pictures")
        page.text("Some test heads from the best Dice to the worst: input, reconstruction, residual, stroke.")
        for name, title in METHODS.items():
            page.picture(self.folder / "evaluation" / "pictures" / f"{name}.png", title)
        page.section("What ran, and how long")
        page.table([{"stage": name, "seconds": stage["seconds"]} for name, stage in stages.items()])
        page.commands([command for stage in stages.values() for command in stage["commands"]])
        return page.write()


def detection_rows(folder: Path) -> list[dict[str, Any]]:
    """A row for each method without and with filters."""
    rows = []
    for name, result in load_json(folder / "summary.json")["results"].items():
        plain = name.removesuffix("_filtered")
        thresholds = result["thresholds"]
        rows.append(
            {
                "method": METHODS.get(plain, plain.replace("_", " ")),
                "filters": "off" if plain == name else "on",
                "average precision": result["pooled"]["average_precision_pooled"],
                "AUROC": result["pooled"]["auroc_pooled"],
                "dice": thresholds["validation_exact"]["dice_set"],
                "dice_subject": thresholds["validation_exact"]["dice_subject_mean"],
                "dice, oracle": thresholds["oracle"]["dice_set"],
            }
        )
    return rows
