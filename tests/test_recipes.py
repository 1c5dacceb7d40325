"""Every recipe of every folder: it parses through its script, reads what earlier stages wrote, has a recipe's form."""

import importlib
import re
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from ruamel.yaml import YAML

from crawl2chat.plan import inputs
from crawl2chat.recipe import load_recipe

ROOT = Path(__file__).parents[1]
RECIPES = sorted(path.relative_to(ROOT) for path in (ROOT / "recipes").rglob("*.yaml"))
ORDER = re.findall(r"^    stage (\w+)", (ROOT / "scripts/lifecycle.sh").read_text(encoding="utf-8"), re.MULTILINE)
LAUNCH = r"# (?:python|accelerate launch(?: --config_file (accelerate_configs/\w+\.yaml))?) scripts/(\w+)\.py (\S+)"
APART = ["base", "merge", "overoptimization"]  # stages of other folders: of open weights, and of going too far
# folders that read what another folder's stages wrote
AFTER = {
    "smollm2-135m": "laptop",
    "beyond-the-teacher": "laptop",
    "ppo-rloo-grpo": "laptop",
    "smollm2-135m-rlhf": "smollm2-135m",
    "reward-hacking": "laptop",
}
every_recipe = pytest.mark.parametrize("path", RECIPES, ids=str)


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))


def stage_of(path: Path) -> str:
    """The stage that a recipe is for: its stem up to a hyphen; in recipes/gpt2, one pretraining in four sizes."""
    return "pretrain" if path.parent == Path("recipes/gpt2") else path.stem.partition("-")[0]


@cache
def script_of(path: Path) -> ModuleType:
    """The module of a recipe's script."""
    return importlib.import_module(stage_of(path))


def document(path: Path) -> dict:
    return YAML(typ="safe").load(path)


def strings(value: object) -> list[str]:
    """Every text value below `value`."""
    if isinstance(value, dict):
        return [text for child in value.values() for text in strings(child)]
    if isinstance(value, list):
        return [text for child in value for text in strings(child)]
    return [value] if isinstance(value, str) else []


def test_both_families_have_the_same_stages():
    laptop = {stage_of(path) for path in RECIPES if path.parent == Path("recipes/laptop")}
    assert {path.stem for path in RECIPES if path.parent == Path("recipes")} == laptop
    assert laptop == {*ORDER, "chat"} - set(APART)


def test_the_gpt2_recipes_are_one_recipe_in_four_sizes():
    """What differs: the size, what is read, the batch, the schedule and how often it is looked at."""
    recipes = {path.stem: document(path) for path in RECIPES if path.parent == Path("recipes/gpt2")}
    assert list(recipes) == ["1.6b", "124m", "350m", "774m"]
    sizes = {
        name: [recipe["model"][key] for key in ("n_embd", "n_layer", "n_head")] for name, recipe in recipes.items()
    }
    # Radford et al. 2019, table 2; the heads are the released checkpoints'
    assert sizes == {"124m": [768, 12, 12], "350m": [1024, 24, 16], "774m": [1280, 36, 20], "1.6b": [1600, 48, 25]}
    own = "model datasets per_device_train_batch_size gradient_accumulation_steps max_steps learning_rate output_dir "
    own += "lr_scheduler_type lr_scheduler_kwargs eval_steps save_steps"
    shared = [{key: value for key, value in recipe.items() if key not in own.split()} for recipe in recipes.values()]
    assert all(other == shared[0] for other in shared) and shared[0]["tokenizer"] == "openai-community/gpt2"


@every_recipe
def test_it_parses_through_its_scripts_dataclasses(path):
    on_gpus = path.parent.name not in ("laptop", *AFTER) or path.parent.name == "smollm2-135m"
    recipe = load_recipe(*script_of(path).RECIPE, args=[str(path)], plan_only=on_gpus)
    missing = [item.path for item in inputs(recipe.configs) if item.state == "missing"]
    assert all(path.startswith("output/") for path in missing), "what is neither local nor a name on the hub"


@every_recipe
def test_every_local_input_is_an_earlier_stages_output(path):
    own = document(path)
    output_dir = own.pop("output_dir", None)
    earlier = []
    # real open weights are asked what the laptop's data stage knows
    folders = {path.parent, Path("recipes")}
    folders |= {Path("recipes", AFTER[path.parent.name])} if path.parent.name in AFTER else set()
    for folder in folders:
        whole = stage_of(path) not in ORDER or folder != path.parent and path.parent.name in AFTER
        further = path.stem != stage_of(path)  # it follows its stage's own recipe
        before = ORDER if whole else ORDER[: ORDER.index(stage_of(path)) + further]
        before = list(dict.fromkeys(["base", *before]))
        made_by = [
            recipe for stage in before for recipe in (folder / f"{stage}.yaml", *folder.glob(f"{stage}-*.yaml"))
        ]
        earlier += [document(recipe)["output_dir"] for recipe in made_by if recipe.exists()]
    for text in strings(own):
        if text.startswith("output/") and not (output_dir and text.startswith(f"{output_dir}/")):
            made = any(f"{text}/".startswith(f"{folder}/") for folder in earlier)
            holds = any(folder.startswith(f"{text}/") for folder in earlier)  # a report reads the whole run
            assert made or holds, f"{path}: no earlier stage writes {text}"


@every_recipe
def test_it_writes_a_folder_of_its_own_named_for_the_stage(path):
    output_dir = document(path).get("output_dir")
    if path.stem == "chat":
        assert output_dir is None
        return
    name = stage_of(path) if path.parent == Path("recipes/gpt2") else path.stem
    assert re.fullmatch(rf"output/[a-z0-9][a-z0-9.-]*/{name}", output_dir), output_dir
    assert sum(document(other).get("output_dir") == output_dir for other in RECIPES) == 1


@every_recipe
def test_its_first_two_lines_say_what_to_expect_and_how_to_launch(path):
    text = path.read_text(encoding="utf-8")
    first, second, third, *rest = text.splitlines()
    assert re.match(r"# [A-Z0-9]", first), "line 1 says what it is, hardware, time and the expected number"
    assert re.search(r"second|minute|hour|day|\d s\b", first), "line 1 says how long it takes"
    assert path.stem == "chat" or re.search(r"not yet run|\d", first), "line 1 says a number, or `not yet run`"
    launch = re.fullmatch(LAUNCH, second)
    assert launch, f"line 2 must be the launch command, is: {second}"
    assert (launch[2], launch[3]) == (stage_of(path), str(path))
    assert launch[1] is None or Path(launch[1]).exists()
    assert third == "" and any(line.startswith("# ") for line in rest), "sections follow, each under a comment"
    assert len(text.splitlines()) <= 60


@every_recipe
def test_training_shows_its_sum(path):
    keys = document(path)
    if "gradient_accumulation_steps" in keys or "per_device_train_batch_size" in keys:
        factors = (keys.get("per_device_train_batch_size"), keys.get("gradient_accumulation_steps", 1))
        lines = path.read_text(encoding="utf-8").splitlines()
        sums = [line for line in lines if line.startswith("# trainer: ")]
        assert sums, "the trainer's comment says the rows of a step, and the tokens where steps are given"
        assert all(re.search(rf"\b{factor}\b", sums[0]) for factor in factors if factor != 1), sums[0]
        assert " = " in sums[0] or "max_steps" not in keys, sums[0]


@pytest.mark.parametrize("path", [path for path in RECIPES if path.parent.name == "laptop"], ids=str)
def test_the_laptop_needs_no_hub(path):
    recipe = load_recipe(*script_of(path).RECIPE, args=[str(path)], plan_only=True)
    assert not [item for item in inputs(recipe.configs) if "hub" in item.state or "remote" in item.state]
    assert document(path).get("report_to", "none") == "none" and not document(path).get("push_to_hub")
