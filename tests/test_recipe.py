"""parse_recipe: what it takes from YAML and flags, what it refuses and in which words, what a dry run checks."""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crawl2chat.plan import plan
from crawl2chat.recipe import RecipeError, load_recipe, parse_recipe
from crawl2chat.recipe_checks import CHOICES


@dataclass
class Source:
    path: str = field(metadata={"reads": True})
    weight: float = field(default=1.0, metadata={"gt": 0})


@dataclass
class Stage:
    output_dir: str = field(metadata={"help": "where it writes"})
    sources: list[Source] = field(default_factory=list)
    pages: str | None = field(default=None, metadata={"reads": True})
    learning_rate: float = 1e-3
    max_steps: int = 10
    eval_strategy: Literal["no", "steps"] = "no"
    packing: bool = False
    tools: list[str] = field(default_factory=list, metadata={"choices": ["search", "python"]})
    model: dict = field(default_factory=dict)
    size: tuple[int, ...] = ()
    one: Source | None = None
    folder: Path = Path("here")
    prompt: str = "Hello"

    def __post_init__(self):
        if self.max_steps == 13:
            raise ValueError("thirteen\nis unlucky")


@dataclass
class Shared:
    max_steps: int = 0


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Writes r.yaml into the folder the test runs in."""
    monkeypatch.chdir(tmp_path)

    def write(text: str | bytes) -> str:
        Path("r.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return "r.yaml"

    return write


def load(text: str, *flags: str, types=(Stage,)):
    Path("r.yaml").write_text(text, encoding="utf-8")
    return load_recipe(*types, args=["r.yaml", *flags]).configs


def complaints(text: str, *flags: str, types=(Stage,)) -> list[str]:
    with pytest.raises(RecipeError) as error:
        load(text, *flags, types=types)
    assert error.value.code == 2
    assert all(line and "\n" not in line for line in error.value.lines)
    return error.value.lines


def test_yaml_words_and_numbers_mean_what_the_key_says(recipe):
    (stage,) = load("output_dir: o\nlearning_rate: 2e-5\neval_strategy: no\npacking: no\nsize: [1, 2]\nfolder: a/b\n")
    assert (stage.learning_rate, stage.eval_strategy, stage.packing) == (2e-5, "no", False)
    assert (stage.size, stage.folder) == ((1, 2), Path("a/b"))
    (stage,) = load("output_dir: o\nlearning_rate: 1\npacking: yes\nmax_steps: 1_000\n")
    assert (stage.learning_rate, stage.packing, stage.max_steps) == (1.0, True, 1000)


def test_flags_override_the_recipe_and_reach_into_it(recipe):
    text = "output_dir: o\nmax_steps: 5\nsources:\n  - path: a\n  - path: b\n"
    flags = "--max_steps 3 --sources.1.weight=0.5 --model.hidden_size 64 --packing --tools search python --one.path x"
    (stage,) = load(text, *flags.split())
    assert (stage.max_steps, stage.sources[1].weight, stage.packing) == (3, 0.5, True)
    assert (stage.tools, stage.one, stage.model) == (["search", "python"], Source("x"), {"hidden_size": 64})
    flags = ["--model", '{"hidden_size": 64}', "--tools", "search", "--tools", "python", "--prompt", "[no: list"]
    (stage,) = load(text, *flags)
    assert (stage.model, stage.tools, stage.prompt) == ({"hidden_size": 64}, ["search", "python"], "[no: list")


def test_flags_alone_are_a_recipe(recipe):
    (stage,) = load_recipe(Stage, args=["--output_dir", "o", "--max_steps=-1", "--prompt", "12"]).configs
    assert (stage.output_dir, stage.max_steps, stage.prompt) == ("o", -1, "12")


def test_a_key_of_two_dataclasses_goes_to_both(recipe):
    stage, shared = load("output_dir: o\nmax_steps: 4\n", types=(Stage, Shared))
    assert (stage.max_steps, shared.max_steps) == (4, 4)


@pytest.mark.parametrize(
    "line, says",
    [
        ("learnin_rate: 1", "r.yaml:2: key 'learnin_rate' is unknown; did you mean 'learning_rate'?"),
        ("zzz: 1", "r.yaml:2: key 'zzz' is unknown; see --help"),
        ("max_steps: 1\nmax_steps: 2", "r.yaml:3: key 'max_steps' is given twice (first at r.yaml:2)"),
        ("max_steps: ten", "r.yaml:2: key 'max_steps' must be a whole number, got 'ten'"),
        ("max_steps: 1.5", "r.yaml:2: key 'max_steps' must be a whole number, got 1.5"),
        ('max_steps: "1"', "r.yaml:2: key 'max_steps' must be a whole number, got '1'"),
        ("max_steps: true", "r.yaml:2: key 'max_steps' must be a whole number, got true"),
        ("max_steps:", "r.yaml:2: key 'max_steps' must be a whole number, got null"),
        ("max_steps: 0", "r.yaml:2: key 'max_steps' must be other than 0, got 0"),
        ("learning_rate: .nan", "r.yaml:2: key 'learning_rate' must be a finite number, got .nan"),
        ("learning_rate: 1e999", "r.yaml:2: key 'learning_rate' must be a finite number, got 1e999"),
        ("learning_rate: -1e-3", "r.yaml:2: key 'learning_rate' must be at least 0, got -0.001"),
        ("learning_rate: 30", "r.yaml:2: key 'learning_rate' must be at most 1, got 30.0"),
        ("prompt: 12", "r.yaml:2: key 'prompt' must be text, got 12; write it in quotes"),
        ("eval_strategy: step", "key 'eval_strategy' must be one of no, steps, got 'step'; did you mean 'steps'?"),
        ("tools: [serch]", "key 'tools[0]' must be one of search, python, got 'serch'; did you mean 'search'?"),
        ("sources: {path: a}", "r.yaml:2: key 'sources' must be a list, got {'path': 'a'}"),
        ("sources:\n  - path: a\n    wieght: 2", "r.yaml:4: key 'sources[0].wieght' is unknown; did you mean"),
        ("sources:\n  - weight: 2", "r.yaml:3: key 'sources[0].path' is missing"),
        ("sources:\n  - path: a\n    weight: 0", "r.yaml:4: key 'sources[0].weight' must be above 0, got 0.0"),
        ("one: {path: 3}", "r.yaml:2: key 'one.path' must be text, got 3; write it in quotes"),
        ("prompt: &a x", "r.yaml:2: key 'prompt' uses an anchor or alias; write the value out"),
        ("prompt: !!python/name:os.system x", "r.yaml:2: key 'prompt' has the tag"),
        ("max_steps: [", "is not valid YAML"),
        ("\tmax_steps: 1", "r.yaml:2: is not valid YAML"),
        ("max_steps: 13", "r.yaml: refused by Stage: ValueError: thirteen is unlucky"),
        ("hub_token: hf_abcdefgh", "r.yaml:2: key 'hub_token' is a secret"),
        ("model: {api_key: sk-abc}", "r.yaml:2: key 'model.api_key' is a secret"),
        ("env: {LD_PRELOAD: evil.so}", "r.yaml:2: key 'env.LD_PRELOAD' is not allowed in a recipe"),
        ("env: {OMP_NUM_THREADS: many}", "r.yaml:2: key 'env.OMP_NUM_THREADS' must be a number of threads, got many"),
        ("env: [A]", "r.yaml:2: key 'env' must be a mapping"),
        ("[a]: 3", "has a key that is not text"),
    ],
)
def test_a_wrong_line_is_refused_with_its_place(recipe, line, says):
    lines = complaints(f"output_dir: o\n{line}\n")
    assert len(lines) == 1 and says in lines[0], lines
    assert "hf_abc" not in lines[0] and "sk-abc" not in lines[0]


@pytest.mark.parametrize(
    "flags, says",
    [
        ("--max_stepz 3", "--max_stepz: unknown flag; did you mean --max_steps?"),
        ("--max-steps 3", "--max-steps: unknown flag; did you mean --max_steps?"),
        ("--max_steps ten", "--max_steps: must be a whole number, got 'ten'"),
        ("--max_steps 3 --max_steps 4", "--max_steps: is given twice"),
        ("--max_steps 3 4", "--max_steps: takes one value, got 3 4"),
        ("--max_steps", "--max_steps: takes one value, got none"),
        ("--learning_rate -2", "--learning_rate: must be at least 0, got -2"),
        ("--one.pth x", "--one.pth: unknown flag; did you mean --one.path?"),
        ("--sources.4.weight 2", "--sources.4.weight: there is no sources.4 to set"),
        ("--model.hub_token x", "--model.hub_token: is a secret"),
        ("--env.LD_PRELOAD x", "--env.LD_PRELOAD: unknown flag"),
        ("-x", "-x: unexpected; the recipe comes first"),
    ],
)
def test_a_wrong_flag_is_refused_by_name(recipe, flags, says):
    lines = complaints("output_dir: o\nsources: []\n", *flags.split())
    assert says in lines[0], lines


@pytest.mark.parametrize(
    "content, says",
    [
        (b"", "r.yaml: is empty"),
        (b"# a remark\n", "r.yaml: is empty"),
        (b"{}", "r.yaml: is empty"),
        (b"- a\n", "r.yaml:1: is not a mapping"),
        (b"just words\n", "r.yaml:1: is not a mapping"),
        (b"prompt: \xff\xfe\n", "r.yaml: is not UTF-8 text (byte 8)"),
        (b"prompt: \x07\n", "r.yaml: is not valid YAML"),
        (b"a: 1\n---\nb: 2\n", "r.yaml:2: is not valid YAML"),
        (b"prompt: " + b"[" * 5000, "r.yaml: is nested too deeply"),
        (b"max_steps: 10", "r.yaml: key 'output_dir' is missing (where it writes)"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_in_one_line(recipe, content, says):
    with pytest.raises(RecipeError) as error:
        load_recipe(Stage, args=[recipe(content)])
    assert len(error.value.lines) == 1 and says in str(error.value)


def test_a_recipe_that_is_not_there_is_named(recipe):
    for path in ("nowhere.yaml", "."):
        with pytest.raises(RecipeError, match=f"{path}: cannot be read"):
            load_recipe(Stage, args=[path])


def test_every_complaint_of_a_file_is_printed(recipe):
    lines = complaints("max_stepz: 1\nlearning_rate: x\npacking: 3\n", "--foo", "1")
    assert len(lines) == 5


def test_env_is_set_before_the_dataclasses_are_built(recipe, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")

    @dataclass
    class Config:
        output_dir: str = "o"
        mode: str = field(default_factory=lambda: os.environ["WANDB_MODE"])

    assert load("output_dir: o\nenv: {WANDB_MODE: disabled}\n", types=(Config,))[0].mode == "disabled"


names = "output_dir sources max_steps learning_rate model tools one env packing zzz".split()
keys = st.sampled_from(names) | st.text(max_size=5)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
trees = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4))
recipes = st.text(max_size=80) | st.dictionaries(keys, trees, max_size=5).map(repr)
flag_lists = st.lists(st.text(max_size=12) | st.sampled_from([f"--{name}" for name in names]), max_size=4)


@settings(max_examples=300, deadline=None)
@given(recipes, flag_lists)
def test_no_text_and_no_flags_end_in_a_traceback(tmp_path_factory, text, flags):
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        load_recipe(Stage, args=[str(path), *flags])
    except RecipeError as error:
        assert error.lines and all("\n" not in line for line in error.lines)


def test_a_run_leaves_its_recipe_and_is_no_longer_complete(recipe):
    path = recipe("# what it is\noutput_dir: out  # here\nmax_steps: 5\n")
    Path("out").mkdir()
    Path("out/metrics.json").write_text("{}")
    parse_recipe(Stage, args=[path])
    assert Path("out/recipe.yaml").read_text() == Path("r.yaml").read_text()
    assert not Path("out/metrics.json").exists()
    parse_recipe(Stage, args=[path, "--max_steps", "7", "--tools", "search"])
    text = Path("out/recipe.yaml").read_text()
    assert "# what it is" in text and "max_steps: 7" in text
    (again,) = load_recipe(Stage, args=["out/recipe.yaml"]).configs
    assert (again.max_steps, again.tools) == (7, ["search"])


def test_a_missing_input_names_the_stage_that_writes_it(recipe, capsys):
    Path("data.yaml").write_text("# pages\noutput_dir: output/data\n")
    text = "output_dir: out\nsources:\n  - path: output/data/shards\nmodel: {words: output/data/w}\n"
    text += "pages: ./x*.jsonl\n"
    path = recipe(text)
    for flags in ((), ("--dry_run",)):
        with pytest.raises(SystemExit) as stop:
            parse_recipe(Stage, args=[path, *flags])
        assert stop.value.code == 1
        errors = capsys.readouterr().err.splitlines()
        assert errors == [
            "r.yaml:3: sources[0].path output/data/shards is missing; `python scripts/data.py data.yaml` writes it",
            "r.yaml:5: pages ./x*.jsonl is missing; check the path",
            "r.yaml:4: model.words output/data/w is missing; `python scripts/data.py data.yaml` writes it",
        ]
    assert not Path("out").exists()


def test_a_dry_run_prints_the_plan_and_touches_nothing(recipe, capsys):
    Path("x1.jsonl").touch()
    path = recipe("output_dir: out\nsources:\n  - path: owner/name:all\npages: ./x*.jsonl\n")
    with pytest.raises(SystemExit) as stop:
        parse_recipe(Stage, args=[path, "--dry_run", "--max_steps", "3"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "sources[0].path: owner/name:all (hub, not checked)" in shown and "pages: ./x*.jsonl (exists)" in shown
    assert "r.yaml --max_steps 3" in shown and "writes  out" in shown
    assert not Path("out").exists()


def test_an_output_dir_that_cannot_be_written_is_one_line(recipe):
    Path("out").write_text("a file")
    with pytest.raises(SystemExit, match="error: out/below: cannot be written"):
        parse_recipe(Stage, args=[recipe("output_dir: out/below\n")])


def test_help_lists_every_key_with_its_default(recipe, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_recipe(Stage, args=["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "--output_dir (text; default required) where it writes" in text
    assert "--eval_strategy (one of no, steps; default 'no')" in text


def test_the_command_line_exits_with_code_2_and_one_line(recipe):
    code = "from crawl2chat.recipe import parse_recipe\nfrom dataclasses import make_dataclass\n"
    code += "parse_recipe(make_dataclass('C', [('output_dir', str)]))"
    done = subprocess.run([sys.executable, "-c", code, "--outptu_dir", "x"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[0] == "--outptu_dir: unknown flag; did you mean --output_dir?"


# the libraries' own dataclasses


TRAINING = "output_dir: o\nuse_cpu: true\nbf16: false\n"


@pytest.mark.parametrize(
    "line, says",
    [
        ("optim: adamw_toch", "one of --help's list, got 'adamw_toch'; did you mean 'adamw_torch'?"),
        ("lr_scheduler_type: cosin", "did you mean 'cosine'?"),
        ("eval_strategy: never", "key 'eval_strategy' must be one of no, steps, epoch, got 'never'"),
        ("report_to: wandbb", "did you mean 'wandb'?"),
        ("dtype: float17", "did you mean 'float16'?"),
        ("warmup_ratio: 0.1", "key 'warmup_ratio' is unknown; did you mean 'warmup_steps'?"),
        ("torch_dtype: float32", "key 'torch_dtype' is unknown; did you mean 'dtype'?"),
        ("per_device_train_batch_size: 0", "must be at least 1, got 0"),
        ("logging_steps: .inf", "must be a finite number"),
        ("adam_beta1: 1", "must be below 1, got 1.0"),
        ("push_to_hub: maybe", "must be true or false, got 'maybe'"),
        ("load_in_8bit: true\nload_in_4bit: true", "refused by ModelConfig: ValueError: You can't use 8 bit"),
        ("datasets:\n  - path: a\n    spilt: train", "key 'datasets[0].spilt' is unknown; did you mean 'split'?"),
    ],
)
def test_transformers_and_trl_keys_are_checked_before_they_are_built(recipe, line, says):
    from trl import DatasetMixtureConfig, ModelConfig, SFTConfig

    lines = complaints(TRAINING + line + "\n", types=(SFTConfig, ModelConfig, DatasetMixtureConfig))
    assert len(lines) == 1 and says in lines[0], lines


def test_training_arguments_come_out_built(recipe):
    from trl import ModelConfig, SFTConfig

    text = TRAINING + "eval_strategy: no\nlearning_rate: 2e-5\nuse_peft: true\n"
    text += "lr_scheduler_kwargs: {min_lr_rate: 0.1}\n"
    args, model = load(text, "--lr_scheduler_type", "cosine_with_min_lr", types=(SFTConfig, ModelConfig))
    assert (args.eval_strategy.value, args.learning_rate, args.report_to) == ("no", 2e-5, [])
    assert (args.lr_scheduler_kwargs, model.use_peft) == ({"min_lr_rate": 0.1}, True)


def test_training_without_an_output_dir_is_refused(recipe):
    from transformers import TrainingArguments

    assert "key 'output_dir' is missing" in complaints("use_cpu: true\n", types=(TrainingArguments,))[0]


def test_the_plan_shows_the_sums(recipe, monkeypatch):
    from trl import SFTConfig

    path = recipe("output_dir: o\nbf16: true\nper_device_train_batch_size: 4\ngradient_accumulation_steps: 2\n")
    flags = ["--max_steps", "10"]
    configs = load_recipe(SFTConfig, args=[path, *flags], plan_only=True).configs  # a GPU's recipe, on any machine
    monkeypatch.setenv("WORLD_SIZE", "8")
    shown = plan(configs, Path("r.yaml"), flags)
    assert "4 sequences x 2 accumulation x 8 processes = 64 sequences a step" in shown
    assert "65,536 tokens a step" in shown and "655,360 tokens" in shown


def test_the_reporters_are_those_that_transformers_has():
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    assert set(INTEGRATION_TO_CALLBACK) <= set(CHOICES["report_to"])
