"""What the documents say is so: generated pages, links, command lines, names of trainers and planners."""

import ast
import importlib.util
import json
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from nnunet_anomaly.cli.main import VERBS, build_parser
from nnunet_anomaly.report.reference import commands_reference, settings_reference, write_references
from nnunet_anomaly.settings import BLOCK, AnomalySettings, all_fields, parse_assignment
from nnunet_anomaly.trainers.epoch_variants import VARIANT_NAME

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
# pages of results are written by the runs that they report on
PAGES = [REPOSITORY / "README.md", *sorted(p for p in DOCS.rglob("*.md") if p.parent.name != "results")]
CODE_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OURS = re.compile(r"nnunet-anomaly(?= |$)")


def page_id(path):
    return path.relative_to(REPOSITORY).as_posix()


each_page = pytest.mark.parametrize("page", PAGES, ids=page_id)


def shell_commands(text):
    """Simple commands of all shell blocks: continued lines joined, comments, loops and substitutions taken apart."""
    for kind, block in CODE_BLOCK.findall(text):
        if kind == "bash":
            for line in block.replace("\\\n", " ").splitlines():
                inner = re.search(r"\$\((.*)\)", line)
                words = shlex.split(inner[1] if inner else line, comments=True)
                if words and words[0] not in ("for", "done", "export"):
                    yield words


def inline_code(text):
    """Code in running text, without the blocks."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", CODE_BLOCK.sub("", text))]


def headings(page):
    """Anchors of a page, made of its headings as GitHub does."""
    titles = re.findall(r"^#+ (.+)$", CODE_BLOCK.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@cache
def classes_of(folder):
    """Names of all classes defined below a folder, without importing anything."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in Path(folder).rglob("*.py")]
    return {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


@cache
def nnunet_folder():
    return Path(importlib.util.find_spec("nnunetv2").origin).parent


@cache
def flags_of_nnunet(command):
    """Options that the module behind one of nnU-Net's commands declares."""
    from importlib.metadata import entry_points

    (entry,) = entry_points(group="console_scripts", name=command)
    source = nnunet_folder().parent / (entry.module.replace(".", "/") + ".py")
    return set(re.findall(r"add_argument\(\s*['\"](-[\w-]+)", source.read_text(encoding="utf-8")))


def is_trainer(name):
    match = VARIANT_NAME.fullmatch(name)
    ours = classes_of(REPOSITORY / "trainers")
    stock = classes_of(nnunet_folder() / "training" / "nnUNetTrainer")
    return name in ours | stock or (match is not None and match["base"] in ours)


def test_settings_reference_is_up_to_date():
    assert (DOCS / "reference/settings.md").read_text(encoding="utf-8") == settings_reference()


def test_commands_reference_is_up_to_date():
    assert (DOCS / "reference/commands.md").read_text(encoding="utf-8") == commands_reference()


def test_references_are_written_as_they_are_compared(tmp_path):
    written = write_references(tmp_path)
    assert [path.read_text(encoding="utf-8") for path in written] == [settings_reference(), commands_reference()]
    assert [path.name for path in written] == ["settings.md", "commands.md"]


def test_settings_reference_has_every_setting_with_both_values():
    rows = dict(re.findall(r"^\| `([\w.]+)` \| (.+) \|$", settings_reference(), re.MULTILINE))
    assert list(rows) == [key for key, _ in all_fields()]
    values = [cell.strip(" `") for cell in rows["roi.dilation_mm"].split(" | ")]
    assert values[:4] == ["a number", "3.0", "18.0", "at least 0"]
    settings = AnomalySettings()
    for key, row in rows.items():  # what stands in the table can be typed
        if key == "preset":
            continue  # by --preset
        robust = row.split(" | ")[1].strip("`")
        assert settings.with_values(dict([parse_assignment(f"{key}={robust}")])) == settings, key


def test_commands_reference_has_every_verb_and_option():
    text = commands_reference()
    for verb in VERBS:
        assert re.search(rf"^## nnunet-anomaly {verb}( [\w-]+)?$", text, re.MULTILINE), verb
    for option in ("`-pred`", "`--calibration-segmentations`", "`--full-grid`", "`--oai-root`", "`RELEASE`"):
        assert f"| {option} |" in text
    assert "Exactly one of `-d`, `--threshold-file`." in text
    assert "argparse" not in text and "%(" not in text and "None" not in text


@each_page
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{target} does not exist"
        assert found.is_relative_to(REPOSITORY), f"{target} leads out of the repository"
        if anchor:
            assert anchor in headings(found), f"{target} has no such heading"


@each_page
def test_our_command_lines_parse(page):
    text = page.read_text(encoding="utf-8")
    commands = [words[1:] for words in shell_commands(text) if words[0] == "nnunet-anomaly"]
    commands += [shlex.split(code)[1:] for code in inline_code(text) if OURS.match(code)]
    for words in commands:
        if not words or words[0] == "VERB":
            continue
        assert words[0] in VERBS, f"nnunet-anomaly {' '.join(words)}"
        if len(words) > 1 and any(word.startswith("-") for word in words):
            args = build_parser(words[0]).parse_args(words)  # SystemExit, with argparse's message, where it is wrong
            for text in getattr(args, "assignments", []):
                key, value = parse_assignment(text)
                AnomalySettings().with_values({key: value})


@each_page
def test_command_lines_of_nnunet_have_only_its_options(page):
    for words in shell_commands(page.read_text(encoding="utf-8")):
        if not words[0].startswith("nnUNetv2_"):
            continue
        unknown = {word for word in words[1:] if re.match(r"-{1,2}[a-zA-Z]", word)} - flags_of_nnunet(words[0])
        assert not unknown, f"{' '.join(words)}: {unknown}"
        named = {flag: words[words.index(flag) + 1] for flag in ("-tr", "-p", "-pl") if flag in words}
        if words[0] == "nnUNetv2_train":
            assert named["-p"].endswith("Plans") or "Plans_" in named["-p"]
            assert re.fullmatch(r"[23]d(_fullres|_inpainting|_whole|_multiplanar)?", words[2]) and words[3] in (
                "0",
                "$fold",
                "all",
            ), words
            inpainting = re.search("Inpainting|KnowledgeDistillation|LaMa", named["-tr"])
            assert bool(inpainting) == words[2].endswith("_inpainting"), words
            assert ("MultiPlanar" in named["-tr"]) == words[2].endswith("_multiplanar"), words
            assert bool(re.search("VAE|HealthyMean", named["-tr"])) == words[2].endswith("_whole"), words


@each_page
def test_commands_are_those_of_the_package_or_of_nnunet(page):
    known = {"nnunet-anomaly", "pip", "make", "python", "mkdir", "cp", "basename", "ls", "head", "tail", "sed"}
    for words in shell_commands(page.read_text(encoding="utf-8")):
        assert words[0] in known or words[0].startswith("nnUNetv2_"), " ".join(words)


@each_page
def test_trainers_and_planners_exist(page):
    text = page.read_text(encoding="utf-8")
    planners = classes_of(REPOSITORY / "planners") | classes_of(nnunet_folder() / "experiment_planning")
    for name in set(re.findall(r"nnUNetTrainer\w*", text)):
        # a model's folder is named TRAINER__PLANS__CONFIGURATION
        assert is_trainer(name.split("__")[0]), name
    for name in set(re.findall(r"nnUNetPlanner\w*|\w+Normalization\b", text)):
        assert re.sub(r"_(\d+(voxels|pixels)|byMemory)$", "", name) in planners, name  # another size


@each_page
def test_settings_that_are_named_exist(page):
    groups = {key.split(".")[0] for key, _ in all_fields() if "." in key}
    known = {key for key, _ in all_fields()} | {f"{BLOCK}.roi_labels", f"{BLOCK}.channel_roles"}
    for code in inline_code(page.read_text(encoding="utf-8")):
        key = code.partition("=")[0]
        if key.split(".")[0] in groups and re.fullmatch(r"\w+\.(?!csv)\w+", key):  # slices.csv is a file
            assert key in known, key


def test_every_difference_between_the_presets_is_explained():
    text = "\n".join(page.read_text(encoding="utf-8") for page in sorted((DOCS / "explanation").glob("*.md")))
    rows = dict(re.findall(r"^\| `([\w.]+)` \| (.+) \|$", text, re.MULTILINE))
    differing = {
        key: (entry.metadata["paper"], entry.metadata["robust"])
        for key, entry in all_fields()
        if entry.metadata["paper"] != entry.metadata["robust"] and key != "preset"
    }
    assert differing.keys() == {key for key in rows if key in dict(all_fields())}
    for key, values in differing.items():
        for cell, value in zip(rows[key].split(" | "), values, strict=False):
            said = cell.split(",")[0].strip("`")
            assert said == value or (not isinstance(value, str) and json.loads(said) == value), (key, cell)


@each_page
def test_no_place_of_one_machine_is_named(page):
    found = re.findall(r"(?<![\w.$~])/(?:home|work|tmp|root|Users|mnt|scratch)/\S*", page.read_text(encoding="utf-8"))
    assert not found
