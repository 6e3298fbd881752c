import json

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from nnunet_anomaly.errors import SettingsError
from nnunet_anomaly.settings import PRESETS, AnomalySettings, all_fields, parse_assignment

KEYS = [key for key, _ in all_fields()]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_survives_the_plans(preset):
    settings = AnomalySettings.for_preset(preset)
    assert settings.preset == preset
    assert AnomalySettings.from_plans({"anomaly": json.loads(json.dumps(settings.to_dict()))}) == settings


def test_the_paper_preset_has_the_published_values():
    paper = AnomalySettings.for_preset("paper")
    assert (paper.focal.alpha, paper.focal.beta) == (10, 99)  # Woo, section 2.3
    assert paper.roi.dilation_mm == pytest.approx(50 * 0.3646, abs=0.3)  # section 2.1: 50 pixels
    assert paper.inpainting.code_channels > 0 and paper.inpainting.upsampling == "transposed"
    assert (paper.inpainting.learning_rate, paper.inpainting.batch_size) == (5e-4, 1)  # appendix A
    assert paper.mimic.objective == "paper" and paper.error_map.clip_sd == 5


def test_robust_is_the_default():
    assert AnomalySettings() == AnomalySettings.for_preset("robust")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"focal.bta": 1}, "Unknown setting 'focal.bta'; did you mean 'focal.beta'?"),
        ({"focal": {"gamma": 1}}, "Unknown setting 'focal.gamma'"),
        ({"focal.beta": "50"}, "'focal.beta' must be a number, not '50'"),
        ({"focal.beta": True}, "'focal.beta' must be a number, not True"),
        ({"focal.beta": float("nan")}, "'focal.beta' must be a number"),
        ({"focal.alpha": -1}, "'focal.alpha' must be at least 0, not -1"),
        ({"mimic.leak_warning": 2}, "'mimic.leak_warning' must be between 0 and 1, not 2"),
        ({"seed": 1.5}, "'seed' must be a whole number, not 1.5"),
        ({"seed": float("inf")}, "'seed' must be a whole number"),
        ({"roi.labels": [1, "femur"]}, "'roi.labels' must be a list of whole numbers"),
        ({"roi.labels": 3}, "'roi.labels' must be a list of whole numbers, not 3"),
        ({"corruption.radius_mm": [1]}, "'corruption.radius_mm' must be a list of 2 numbers"),
        ({"corruption.radius_mm": [5, 2]}, "smaller value first"),
        ({"mimic.objective": "papr"}, "must be one of 'denoising', 'paper', not 'papr'"),
    ],
)
def test_what_is_wrong_is_named(values, message):
    with pytest.raises(SettingsError) as error:
        AnomalySettings.from_dict(values)
    assert message in str(error.value)


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(SettingsError, match="did you mean 'robust'"):
        AnomalySettings.for_preset("robst")


def test_plans_without_our_block_say_how_to_make_them():
    with pytest.raises(SettingsError) as error:
        AnomalySettings.from_plans({"plans_name": "nnUNetPlans", "dataset_name": "Dataset101_Knee"})
    assert "nnUNetv2_plan_and_preprocess -d 101 -pl nnUNetPlannerAnomaly" in str(error.value)


@hypothesis_settings(deadline=None)
@given(st.sampled_from(KEYS), st.sampled_from(PRESETS))
def test_one_value_changes_nothing_else(key, preset):
    settings = AnomalySettings.for_preset(preset)
    other = AnomalySettings.for_preset("paper" if preset == "robust" else "robust")

    def flat(nested, prefix=""):
        for name, value in nested.items():
            if isinstance(value, dict):
                yield from flat(value, f"{prefix}{name}.")
            else:
                yield prefix + name, value

    theirs = dict(flat(other.to_dict()))
    changed = settings.with_values({key: theirs[key]})
    assert dict(flat(changed.to_dict())) == {**dict(flat(settings.to_dict())), key: theirs[key]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("focal.beta=50", ("focal.beta", 50)),
        ("roi.labels=[1, 3]", ("roi.labels", [1, 3])),
        ("mimic.objective=paper", ("mimic.objective", "paper")),
        ('mimic.teacher_trainer="T_5epochs"', ("mimic.teacher_trainer", "T_5epochs")),
    ],
)
def test_assignments_are_read(text, expected):
    assert parse_assignment(text) == expected


@pytest.mark.parametrize(
    ("text", "message"), [("focal.beta", "key=value"), ("focl.beta=1", "did you mean 'focal.beta'")]
)
def test_wrong_assignments_are_refused(text, message):
    with pytest.raises(SettingsError, match=message):
        parse_assignment(text)


def test_every_setting_is_documented():
    for key, entry in all_fields():
        assert entry.metadata["text"].endswith("."), key


def test_a_preset_leaves_what_planning_derived_from_the_data():
    values = {"roi.labels": [3], "multi_planar.plane_pixels": 72, "vae.orientation": "LPS", "gap_weights.amplitude": 5}
    paper = AnomalySettings().with_values(values).at_preset("paper")
    assert (paper.roi.labels, paper.multi_planar.plane_pixels, paper.vae.orientation) == ((3,), 72, "LPS")
    assert (paper.preset, paper.gap_weights.amplitude, paper.focal.alpha) == ("paper", 20, 10)
