"""The README's worked examples of a task, a tool and a reward, run as they stand there; its recipe parses."""

import importlib
import re
import sys
from pathlib import Path

import pytest
from transformers.utils import get_json_schema

import crawl2chat.tasks
import crawl2chat.tools
from crawl2chat import rewards
from crawl2chat.engine import run_call
from crawl2chat.evaluation import load_task
from crawl2chat.recipe import load_recipe
from crawl2chat.tools import open_tools
from tiny import tiny_tokenizer

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"^```python\n# (\S+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL))


@pytest.fixture(autouse=True)
def modules_are_forgotten():
    yield
    for name in ("crawl2chat.tasks.roman", "crawl2chat.tools.weekday"):
        sys.modules.pop(name, None)
    for package, name in ((crawl2chat.tasks, "roman"), (crawl2chat.tools, "weekday")):
        vars(package).pop(name, None)


def put(package, path: str, folder: Path, monkeypatch) -> None:
    """The block of README.md as a file that the package finds."""
    (folder / Path(path).name).write_text(BLOCKS[path], encoding="utf-8")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])


def test_every_example_is_below_30_lines():
    assert [Path(path).parent.name for path in BLOCKS] == ["tasks", "tools", "crawl2chat"]
    assert all(len(block.splitlines()) < 30 for block in BLOCKS.values())


def test_the_task_grades_its_own_answers_and_holds_its_test_out(tmp_path, monkeypatch):
    put(crawl2chat.tasks, "src/crawl2chat/tasks/roman.py", tmp_path, monkeypatch)
    task = load_task("roman")
    rows = {split: list(task.examples(split, count=200)) for split in ("train", "test")}
    for row in rows["train"] + rows["test"]:
        assert task.grade(row["solution"], row["answer"]) == 1
        assert task.grade(f"{int(row['answer']) + 1}.", row["answer"]) == 0
    asked = {split: {row["prompt"][0]["content"] for row in found} for split, found in rows.items()}
    assert not asked["train"] & asked["test"] and "What number is XL?" in asked["test"] | {"What number is XL?"}
    assert [task.roman(number) for number in (4, 49, 399)] == ["IV", "XLIX", "CCCXCIX"]


def test_the_task_becomes_conversations(tmp_path, monkeypatch):
    put(crawl2chat.tasks, "src/crawl2chat/tasks/roman.py", tmp_path, monkeypatch)
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    script = importlib.import_module("conversations")
    recipe = tmp_path / "conversations.yaml"
    line = re.search(r"`(- \{name: roman.*?\})`", README)[1]
    recipe.write_text(f"tasks:\n  {line}\noutput_dir: {tmp_path / 'out'}\n", encoding="utf-8")
    script.main(*load_recipe(*script.RECIPE, args=[str(recipe)]).configs)
    assert len((tmp_path / "out/roman/train.jsonl").read_text().splitlines()) == 400


def test_the_tool_is_opened_by_its_name_described_and_called(tmp_path, monkeypatch):
    put(crawl2chat.tools, "src/crawl2chat/tools/weekday.py", tmp_path, monkeypatch)
    (tool,) = open_tools(["weekday"])
    assert get_json_schema(tool)["function"]["parameters"]["required"] == ["day"]
    call = {"function": {"name": "weekday", "arguments": {"day": "1969-07-20"}}}
    assert run_call(call, [tool]) == ("weekday", "Sunday")
    assert run_call({"function": {"name": "weekday", "arguments": {"day": "soon"}}}, [tool])[1].startswith("error: ")


def test_a_module_of_tools_that_is_no_tool_is_refused():
    with pytest.raises(ValueError, match="no tool 'limit'"):
        open_tools(["limit"])


def test_the_reward_is_named_by_a_recipe_and_pays(monkeypatch):
    monkeypatch.setattr(rewards, "REWARDS", rewards.REWARDS)
    monkeypatch.setattr(rewards, "polite", None, raising=False)
    exec(BLOCKS["src/crawl2chat/rewards.py"], vars(rewards))
    functions, weights = rewards.load_rewards([rewards.Reward("polite", 0.1)], tiny_tokenizer())
    assert functions[0](["Two, please.", "Two.", "Please, please."]) == [1.0, 0.0, 0.0] and weights == [0.1]


def test_the_recipe_parses(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    (text,) = re.findall(r"^```yaml\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    recipe = tmp_path / "sft.yaml"
    recipe.write_text(text, encoding="utf-8")
    load_recipe(*importlib.import_module("sft").RECIPE, args=[str(recipe)], plan_only=True)
