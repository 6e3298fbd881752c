"""Figure 5 of Bengs et al.: average precision against the size of the training set, after ``brains.py``.

    python benchmarks/brains_sizes.py DATA -o OUTPUT [--sizes 20 60 180] [the options that brains.py was called with]

Folds 1, 2, ... are added to ``splits_final.json``: the first so many of the healthy training heads of fold 0, which has
them all, and its validation heads. Trained as often as fold 0, with its first seed. ``OUTPUT/sizes_seen`` and
``sizes_unseen`` hold the evaluation with ``training_size.png``, ``OUTPUT/table_sizes.md`` the table.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from brains import SETS, Brains, arguments

from nnunet_anomaly.files import load_json, save_json
from nnunet_anomaly.report.page import markdown_table

NAMES = ("2D VAE none", "2D VAE cube-n", "3D VAE none", "3D VAE cube-n")


class Sizes(Brains):
    """Networks of ``brains.py`` that learn from fewer heads."""

    def add_folds(self) -> list[int]:
        """Folds of fewer heads; the size of every fold, all heads (fold 0) first.

        Raises:
            SystemExit: there are no more heads than a size says.
        """
        path = next(Path(self.environment["nnUNet_preprocessed"]).glob("Dataset300_*")) / "splits_final.json"
        whole = load_json(path)[0]
        if max(self.args.sizes) >= len(whole["train"]):
            raise SystemExit(f"--sizes must be below the {len(whole['train'])} heads of fold 0")
        heads = np.random.default_rng(0).permutation(whole["train"]).tolist()
        fewer = [{"train": sorted(heads[:size]), "val": whole["val"]} for size in self.args.sizes]
        save_json([whole, *fewer], path)
        return [len(whole["train"]), *self.args.sizes]

    def train(self, fold: int, trainer: str, configuration: str, seed: int, maps: Path) -> None:
        """One network of one fold, and its error maps of all sets."""
        plans = ("-p", f"seed{seed}_{configuration[:2]}", "-device", self.device)
        self.call("nnUNetv2_train", "300", configuration, str(fold), "-tr", trainer, *plans)
        command = self.error_maps(trainer, configuration, seed, self.output / "images", str(maps))
        command[command.index("-f") + 1] = str(fold)
        self.call(*command)

    def evaluate_sizes(self, test: str, runs: list[tuple[str, int, Path]]) -> list[dict[str, str]]:
        """Evaluation of all runs (name, size, maps) on one test set; rows of the table."""
        command = ["-ref", str(self.output / "lesions" / test), "-m", str(self.output / "brains" / test)]
        for *_, maps in runs:
            command += ["-pred", str(maps)]
        names = [f"{name}_{size}".replace(" ", "_") for name, size, _ in runs]
        command += ["--names", *names, "--training-sizes", *(str(size) for _, size, _ in runs)]
        command += ["--curve-names", *(name for name, *_ in runs), *self.median(), "-np", "1"]
        folder = self.output / f"sizes_{test}"
        self.call("nnunet-anomaly", "evaluate-anomaly", *command, "-o", str(folder))
        results = load_json(folder / "summary.json")["results"]
        rows = []
        for name in dict.fromkeys(name for name, *_ in runs):
            row = {"test set": test, "method": name}
            for _, size, _ in sorted(run for run in runs if run[0] == name):
                key = f"{name}_{size}".replace(" ", "_")
                off, on = (
                    results[each]["pooled"]["average_precision_pooled"] if each in results else float("nan")
                    for each in (key, f"{key}_filtered")
                )
                row[f"{size} heads"] = f"{off:.3f} / {on:.3f}"
            rows.append(row)
        return rows


def main() -> None:
    """Run what is not done yet."""
    parser = arguments(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[20, 60, 180])
    study = Sizes(parser.parse_args())
    seed = study.args.seeds[0]
    runs = []
    for fold, size in enumerate(study.add_folds()):
        for name, trainer, configuration in study.networks():
            if name in NAMES:
                maps = (
                    study.output / "maps" / f"fold{fold}" / name.replace(" ", "_") if fold else study.maps(name, seed)
                )
                if fold:
                    study.train(fold, trainer, configuration, seed, maps)
                runs.append((name, size, maps))
    rows = [row for test in SETS[1:] for row in study.evaluate_sizes(test, runs)]
    (study.output / "table_sizes.md").write_text(markdown_table(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
