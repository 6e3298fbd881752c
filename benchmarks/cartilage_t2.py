"""Thomas' comparison of a network with two readers on generated knees of known T2, by the commands that a user types.

    python benchmarks/cartilage_t2.py -o OUTPUT [--subjects 30] [--test 12] [--epochs 20] [--seeds 1 2] [-device cpu]

Knees are generated at two visits each (``phantom mese``); those of the last ``--test`` subjects are the test. Networks
learn from the first reader's masks, their thresholds are searched on the validation cases, and what they measure is
compared with what the first reader's masks give; so is the second reader. What is done is kept, so that the script goes
on where it was stopped. It writes ``OUTPUT/tables.md``:

- segmentation: Dice and Jaccard index, mean and SD over scans (table 2 of the paper);
- regions: Spearman's correlation and mean absolute error of T2 and of its change (figure 4);
- clusters: share of the plate that clusters of rising T2 cover (section 3.5);
- truth: the error of T2 against the T2 that was drawn;
- side: what the shape of the cartilage tells of the side of the knee.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from console import Console

from nnunet_anomaly.evaluation.agreement import Agreement, agreement
from nnunet_anomaly.evaluation.overlap import dice, overlap_counts
from nnunet_anomaly.files import load_json
from nnunet_anomaly.label_maps import read_label_map
from nnunet_anomaly.relaxometry.region_table import FILE_NAME, change_rows, read_region_table
from nnunet_anomaly.relaxometry.subregions import LABELS, REGIONS
from nnunet_anomaly.report.page import markdown_table

READER_1, READER_2 = "reader 1", "reader 2"
DATASETS = {READER_1: "104", READER_2: "105"}
NAMES = {READER_1: "KneeMESE", READER_2: "KneeMESESecond"}
# arm: trainer; nnU-Net's own sees all three echoes, with the same plans
ARMS = {"MESE": "nnUNetTrainerMESE", "nnU-Net": "nnUNetTrainerSeeded"}
PLANNER, PLANS = "nnUNetPlannerMESETiny", "nnUNetMESETinyPlans"


class Benchmark(Console):
    """The study's commands."""

    def __init__(self, output: Path, args: argparse.Namespace):
        super().__init__(output, args.device)
        self.args = args
        self.epochs = f"{args.epochs}epoch{'s' if args.epochs > 1 else ''}"

    def make_datasets(self) -> None:
        """Knees, and a dataset for each reader with the same test subjects."""
        args, phantom = self.args, self.output / "phantom"
        size = ("--grid", *map(str, args.grid))
        self.call(
            *("nnunet-anomaly", "phantom", "mese", "--subjects", str(args.subjects), "--seed", "1"),
            *("-o", str(phantom), "-np", "2", *size),
        )
        subjects = sorted({path.name.split("_")[0] for path in (phantom / "labels").iterdir()})
        test_list = self.output / "test_subjects.txt"
        test_list.write_text("".join(f"{subject}\n" for subject in subjects[-args.test :]), encoding="utf-8")
        for reader, labels in ((READER_1, "labels"), (READER_2, "labels_2")):
            self.call(
                *("nnunet-anomaly", "convert", "oai-mese", str(phantom / "oai"), "--labels", str(phantom / labels)),
                *("-d", DATASETS[reader], "--name", NAMES[reader], "--test-list", str(test_list), "-np", "2"),
            )

    def raw(self, reader: str) -> Path:
        """Raw dataset with a reader's masks."""
        return Path(self.environment["nnUNet_raw"]) / f"Dataset{DATASETS[reader]}_{NAMES[reader]}"

    def train(self, arm: str, seed: int) -> Path:
        """Train one network and search its thresholds; returns its folder."""
        number, plans = DATASETS[READER_1], f"seed{seed}"
        trainer = f"{ARMS[arm]}_{self.epochs}"
        self.call("nnunet-anomaly", "plan", "-d", number, "-p", PLANS, "--set", f"seed={seed}", "--save-as", plans)
        device = ("-device", self.device)
        self.call("nnUNetv2_train", number, "2d", "0", "-tr", trainer, "-p", plans, "--npz", *device)
        results = Path(self.environment["nnUNet_results"])
        model = results / self.raw(READER_1).name / f"{trainer}__{plans}__2d"
        self.call("nnunet-anomaly", "tune", "t2", "-m", str(model), "-o", str(self.output / "tuning" / model.name))
        return model

    def measure(self, name: str, *cartilage: str) -> Path:
        """T2 of all test knees by a model or by masks; returns the folder."""
        output = self.output / "t2" / name.replace(" ", "_")
        dataset = str(self.raw(READER_1))
        self.call("nnunet-anomaly", "t2", "-i", dataset, "--test-cases", *cartilage, "-o", str(output))
        return output

    def run(self) -> dict[str, list[Path]]:
        """Everything; folders of ``t2`` by method, one a seed."""
        self.make_datasets()
        plan = ("nnUNetv2_plan_and_preprocess", "-d", DATASETS[READER_1], "-pl", PLANNER, "-c", "2d")
        self.call(*plan, "-np", "2", "-npfp", "2")
        found = {
            reader: [self.measure(reader, "--mask", str(self.raw(reader) / "labelsTs"))]
            for reader in (READER_1, READER_2)
        }
        by_paper = ("--mask", str(self.raw(READER_1) / "labelsTs"), "--preset", "paper")
        found["reader 1, paper's fit"] = [self.measure("reader 1 paper", *by_paper)]
        for arm in self.args.arms:
            found[arm] = []
            for seed in self.args.seeds:
                model = self.train(arm, seed)
                found[arm].append(self.measure(f"{arm} {seed}", "-m", str(model), "-device", self.device))
        return found


def masks_of(folder: Path) -> dict[str, np.ndarray]:
    """Refined cartilage of every knee and time point of a folder of ``t2``."""
    return {
        path.parent.relative_to(folder).as_posix(): read_label_map(path)[0]
        for path in sorted(folder.rglob("segmentation.nii.gz"))
    }


def overlap_row(reference: Path, folder: Path) -> dict[str, str]:
    """Dice and Jaccard index of all scans, mean and SD."""
    ours, theirs = masks_of(reference), masks_of(folder)
    found = [dice(overlap_counts(ours[name], theirs[name], [1])[1]) for name in ours]
    return {"Dice": mean_sd(found), "Jaccard": mean_sd([value / (2 - value) for value in found])}


def mean_sd(values: Iterable[float], digits: int = 3) -> str:
    """``mean ± SD``, SD (n - 1) of two values or more."""
    values = list(values)
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


Values = Mapping[str, Mapping[str, float]]


def region_values(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Of T2 and of change, by region, the value of every scan or knee."""
    rows = read_region_table(folder).values()
    of_t2: dict[str, dict[str, float]] = {region: {} for region in REGIONS}
    of_change: dict[str, dict[str, float]] = {region: {} for region in REGIONS}
    for row in rows:
        of_t2[row["region"]][f"{row['case']} {row['time_point']}"] = row["t2_mean_ms"]
    for row in change_rows(rows):
        of_change[row["region"]][row["case"]] = row["t2_change_ms"]
    return {"T2": of_t2, "change": of_change}


def of_scans(values: Values, scans: Values) -> dict[str, dict[str, float]]:
    """Only those scans that the others have too."""
    return {region: {key: value for key, value in values[region].items() if key in scans[region]} for region in values}


def compared(reference: Values, prediction: Values, is_ratio_scale: bool) -> dict[str, Agreement]:
    """Agreement by region."""
    return {
        region: agreement(reference[region], prediction[region], is_ratio_scale=is_ratio_scale) for region in REGIONS
    }


def region_table(reference: Path, folders: Mapping[str, list[Path]], quantity: str) -> list[dict[str, Any]]:
    """A row a region: Spearman's correlation, MAE and bias of every method, means over seeds."""
    ours = region_values(reference)[quantity]
    by_method = {
        method: [compared(ours, region_values(folder)[quantity], quantity == "T2") for folder in seeds]
        for method, seeds in folders.items()
    }
    rows = []
    for region in REGIONS:
        row: dict[str, Any] = {"region": region}
        for method, seeds in by_method.items():
            figures = [found[region].figures for found in seeds]
            for key, heading in (("spearman", "Spearman"), ("mae", "MAE (ms)"), ("bias", "bias (ms)")):
                row[f"{method}: {heading}"] = float(np.mean([each[key] for each in figures]))
        rows.append(row)
    parts = [row for row in rows if row["region"] in LABELS]
    mean = {key: float(np.mean([row[key] for row in parts])) for key in parts[0] if key != "region"}
    return [*rows, {"region": "mean of the twelve parts", **mean}]


def cluster_percents(folder: Path) -> dict[str, float]:
    """Share of the plate in clusters, of every knee."""
    records = {path.parent.name: load_json(path) for path in sorted(folder.glob("*/record.json"))}
    return {knee: record["change"]["cluster_percent_of_plate"] for knee, record in records.items()}


def cluster_rows(reference: Path, folders: Mapping[str, list[Path]]) -> list[dict[str, Any]]:
    """A row a method and seed."""
    ours = cluster_percents(reference)
    rows = [{"method": READER_1, "share of the plate (%)": mean_sd(ours.values(), 2)}]
    for method, seeds in folders.items():
        for folder in seeds:
            theirs = cluster_percents(folder)
            figures = agreement(ours, theirs).figures
            rows.append(
                {
                    "method": method if len(seeds) == 1 else f"{method}, {folder.name.split('_')[-1]}",
                    "share of the plate (%)": mean_sd(theirs.values(), 2),
                    "Spearman": f"{figures['spearman']:.2f} (p {figures['p_spearman']:.2g})",
                    "MAE (%)": f"{figures['mae']:.2f} ± {figures['sd_absolute_error']:.2f}",
                }
            )
    return rows


def truth_rows(truth: Path, folders: Mapping[str, list[Path]]) -> list[dict[str, Any]]:
    """Errors against the drawn T2: of the whole plate and, on average, of the twelve parts."""
    rows = []
    for method, seeds in folders.items():
        row: dict[str, Any] = {"method": method}
        for quantity in ("T2", "change"):
            figures: dict[str, list[float]] = {}
            for folder in seeds:
                theirs = region_values(folder)[quantity]
                ours = of_scans(region_values(truth)[quantity], theirs)
                found = compared(ours, theirs, quantity == "T2")
                for key in ("bias", "mae"):
                    figures.setdefault(f"{quantity}, all: {key} (ms)", []).append(found["All"].figures[key])
                    parts = [found[region].figures[key] for region in LABELS]
                    figures.setdefault(f"{quantity}, parts: {key} (ms)", []).append(float(np.mean(parts)))
            row |= {name: float(np.mean(values)) for name, values in figures.items()}
        rows.append(row)
    return rows


def side_rows(folders: Mapping[str, list[Path]]) -> list[dict[str, Any]]:
    """A row a method: in how many scans the shape tells the side, and how often it is the right one."""
    rows = []
    for method, seeds in folders.items():
        records = [load_json(path) for folder in seeds for path in sorted(folder.glob("*/record.json"))]
        told = [(record["side"], time["side_by_shape"]) for record in records for time in record["time_points"]]
        silent = sum(shape is None for _, shape in told)
        right = sum(side == shape for side, shape in told)
        rows.append({"method": method, "right": right, "silent": silent, "wrong": len(told) - right - silent})
    return rows


def write_tables(output: Path, found: Mapping[str, list[Path]]) -> str:
    """``tables.md``."""
    reference = found[READER_1][0]
    others = {name: seeds for name, seeds in found.items() if name not in (READER_1, "reader 1, paper's fit")}
    pairs = [
        {"method": method, "against": against, "seed": place, **overlap_row(found[against][0], folder)}
        for method, seeds in others.items()
        for against in ((READER_1,) if method == READER_2 else (READER_1, READER_2))
        for place, folder in enumerate(seeds, start=1)
    ]
    parts = {"Segmentation": markdown_table(pairs)}
    for quantity in ("T2", "change"):
        rows = region_table(reference, others, quantity)
        formats = {key: "+.2f" if "bias" in key else ".2f" for key in rows[0] if key != "region"}
        parts[f"Regions: {quantity}"] = markdown_table(rows, formats=formats)
    parts["Clusters"] = markdown_table(cluster_rows(reference, others))
    truth = truth_rows(output / "phantom" / "truth" / FILE_NAME, found)
    formats = {key: "+.2f" if "bias" in key else ".2f" for key in truth[0] if key != "method"}
    parts["Truth"] = markdown_table(truth, formats=formats)
    parts["Side"] = markdown_table(side_rows(found))
    text = "\n".join(f"## {name}\n\n{table}" for name, table in parts.items())
    (output / "tables.md").write_text(text, encoding="utf-8")
    return text


def main() -> None:
    """Run what is not done yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--subjects", type=int, default=30, help="two scans each (default: %(default)s)")
    parser.add_argument("--test", type=int, default=12, help="test subjects among them (default: %(default)s)")
    parser.add_argument("--grid", type=int, nargs=3, default=[21, 192, 192], metavar=("SLICES", "ROWS", "COLUMNS"))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("-device", default="cpu")
    args = parser.parse_args()
    benchmark = Benchmark(args.output.resolve(), args)
    print(write_tables(benchmark.output, benchmark.run()))


if __name__ == "__main__":
    main()
