"""What a plan is warned of: each kind of waste, and none in the recipes."""

from pathlib import Path

import pytest

from crawl2chat import budget
from crawl2chat.memory import Launch
from crawl2chat.waste import warnings
from test_budget import CPU, ROOT, recipe_in, run_of

GOOD = {"bf16": "true", "torch_compile": "true", "max_steps": 250_000}  # 20 tokens a parameter


def flags(keys: dict) -> list[str]:
    return [word for key, value in keys.items() for word in (f"--{key}", str(value))]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.setattr(budget, "this_cpu", lambda bf16, memory: CPU)
    monkeypatch.delenv("WORLD_SIZE", raising=False)


@pytest.mark.parametrize("recipe", ["pretrain", "gpt2/124m", "gpt2/350m", "gpt2/774m", "gpt2/1.6b"])
def test_the_recipes_waste_nothing_as_they_are_launched(recipe):
    assert warnings(run_of(Path(f"recipes/{recipe}.yaml"), launch=Launch(8))) == []


@pytest.mark.parametrize(
    "changed, says",
    [
        ({"max_steps": 1000}, "0.1 tokens a parameter: a smaller model"),
        ({"max_steps": 4_000_000}, "314 tokens a parameter: a larger model"),
        ({"bf16": "false"}, "fp32: a GPU's matrix units"),
        ({"torch_compile": "false"}, "no torch_compile"),
        ({"max_length": 100, "per_device_train_batch_size": 5}, "5 x 100 tokens: no multiple of 128"),
        ({"warmup_steps": 250_000}, "warmup_steps 250000: the rate still climbs when the run ends after 250,000"),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "gains most in its decay, and has none"),
        (
            {
                "lr_scheduler_type": "warmup_stable_decay",
                "lr_scheduler_kwargs": "{num_decay_steps: 249999}",
                "warmup_steps": 5,
            },
            "warmup_steps 5 + num_decay_steps 249,999 are more than max_steps 250,000",
        ),
        ({"max_length": 4096, "max_steps": 10_000}, "max_length 4,096: the model has 2,048 positions"),
        (
            {"optim": "muon", "model.hidden_size": 512, "per_device_train_batch_size": 1, "max_steps": 8_000_000},
            "% of a step: more tokens a step would spread them",
        ),
    ],
)
def test_waste_is_named_with_its_numbers(tmp_path, changed, says):
    found = warnings(run_of(recipe_in(tmp_path), *flags(GOOD | changed)))
    assert len(found) == 1 and says in found[0], found


def test_a_plan_without_waste_is_not_warned_of(tmp_path):
    assert (
        warnings(run_of(recipe_in(tmp_path), *(word for key in GOOD for word in (f"--{key}", str(GOOD[key]))))) == []
    )


def test_a_long_run_that_saves_nothing_is_warned_of():
    recipe = Path("recipes/gpt2/124m.yaml")
    assert "nothing is saved in" in warnings(run_of(recipe, "--save_strategy", "no", "--max_steps", "190000"))[0]
    assert "nothing is saved in" in warnings(run_of(recipe, "--save_steps", "999999", "--max_steps", "190000"))[0]


def test_pages_read_more_than_four_times_are_warned_of(tmp_path):
    (tmp_path / "out/tokens").mkdir(parents=True)
    (tmp_path / "out/tokens/pages-0123456789abcdef.bin").write_bytes(bytes(2 * 100_000))
    found = warnings(run_of(recipe_in(tmp_path)))
    assert "pages is read 5.1 times: beyond 4 passes the same pages teach little" in found


def test_a_step_larger_than_this_machine_is_warned_of(tmp_path):
    found = warnings(run_of(Path("recipes/gpt2/1.6b.yaml"), "--use_cpu", "true"))
    assert any("does not fit into this machine's 8 GB" in line for line in found)


def test_an_unpadded_vocabulary_is_warned_of(tmp_path):
    run = run_of(recipe_in(tmp_path))
    run.model.config.vocab_size = 50_257
    assert "vocabulary 50,257: no multiple of 64, which slows the head's matrix product" in warnings(run)
