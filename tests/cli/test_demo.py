"""The demos' chains: commands that exist, stages that are done once, failures that are named."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from nnunet_anomaly.cli.demo import DEFAULTS
from nnunet_anomaly.cli.main import build_parser, main
from nnunet_anomaly.errors import AnomalyError, InputError
from nnunet_anomaly.workflow.chain import Chain
from nnunet_anomaly.workflow.demo import KneeDemo
from nnunet_anomaly.workflow.demo_brain import BrainDemo, detection_rows


@pytest.mark.parametrize("demo", [KneeDemo, BrainDemo])
def test_commands_of_a_demo_are_ours_or_nnunets(demo, tmp_path, monkeypatch):
    monkeypatch.setattr(Chain, "raw", lambda self, dataset: self.folder / "nnUNet_raw" / f"Dataset{dataset}_X")
    lesions = tmp_path / "release" / "truth" / "lesions.json"
    lesions.parent.mkdir(parents=True)
    lesions.write_text(json.dumps({"cases": {"1": {"has_lesions": False}}}))
    commands = [command for _, stage in demo(tmp_path, 6, 2, 1, "cpu").stages() for command in stage]
    programs = {command[0] for command in commands}
    assert "nnunet-anomaly" in programs
    assert programs <= {"nnunet-anomaly", "nnUNetv2_plan_and_preprocess", "nnUNetv2_train", "nnUNetv2_predict"}
    for command in commands:
        if command[0] == "nnunet-anomaly":
            build_parser(command[1]).parse_args(command[1:])  # exits where it does not fit
        if command[0] == "nnUNetv2_train":
            assert command[command.index("-tr") + 1].startswith("nnUNetTrainer")


@pytest.mark.parametrize("method", DEFAULTS)
@pytest.mark.parametrize("option", ["--cases", "--test-cases", "--epochs"])
@pytest.mark.parametrize("number", ["0", "-1", "two"])
def test_numbers_of_a_demo_begin_at_one(method, option, number, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["demo", method, "-o", str(tmp_path / "out"), option, number])
    assert option in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", DEFAULTS)
def test_every_demo_begins(method, tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(Chain, "run", lambda self: begun.append(self) or 0)
    assert main(["demo", method, "-o", str(tmp_path), "--cases", "5"]) == 0
    assert begun[0].cases == 5 and begun[0].epochs == DEFAULTS[method][2]


class Two(Chain):
    """Two stages, of which the second may fail."""

    fails = False

    def stages(self) -> Iterator[tuple[str, list[list[str]]]]:
        code = "import pathlib, sys; pathlib.Path(sys.argv[1]).open('a').write('x')"
        python = Path(sys.executable).name
        yield "first", [[python, "-c", code, self.path("first")]]
        yield "second", [[python, "-c", "print('what is wrong'); raise SystemExit(3)" if self.fails else "pass"]]

    def report(self, stages: Mapping[str, Any]) -> Path:
        return self.folder / "-".join(stages)


def test_a_stage_that_is_done_is_not_repeated_and_a_failure_is_named(tmp_path, capsys):
    chain = Two(tmp_path, 1, 1, 1, "cpu")
    chain.fails = True
    with pytest.raises(AnomalyError, match=r"(?s)exit code 3.*what is wrong"):
        chain.run()
    chain.fails = False
    assert chain.run() == 0
    assert (tmp_path / "first").read_text() == "x"
    assert "first: done before" in capsys.readouterr().out
    with pytest.raises(InputError, match="holds a demo with"):
        Two(tmp_path, 2, 1, 1, "cpu").run()


def test_a_table_with_and_without_filters(tmp_path):
    def result(precision):
        kinds = {name: {"dice_set": 0.2, "dice_subject_mean": 0.1} for name in ("validation_exact", "oracle")}
        return {"pooled": {"average_precision_pooled": precision, "auroc_pooled": 0.7}, "thresholds": kinds}

    results = {"VAE": result(0.3), "VAE_filtered": result(0.4), "raw_intensity_dark": result(0.1)}
    (tmp_path / "summary.json").write_text(json.dumps({"results": results}))
    rows = detection_rows(tmp_path)
    assert [(row["method"], row["filters"], row["average precision"]) for row in rows] == [
        ("VAE, nothing erased", "off", 0.3),
        ("VAE, nothing erased", "on", 0.4),
        ("raw intensity dark", "off", 0.1),
    ]
