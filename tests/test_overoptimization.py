"""Overoptimization: fits, the best of n, turning points and the stop rule on planted curves, and the script on a tiny
world."""

import importlib.util
import json
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from crawl2chat.episodes import Episode, summary
from crawl2chat.guards import Thresholds
from crawl2chat.overoptimization import (
    at_kl,
    best_of,
    best_of_n,
    course,
    fit,
    fits,
    gained,
    kl_of_best,
    numbers,
    onlookers,
    smoothed,
    turning,
)
from crawl2chat.recipe import parse_recipe
from crawl2chat.reward_model import load_reward_model, score
from test_ppo import reward_model
from test_ppo_script import run as run_ppo
from test_ppo_script import world  # noqa: F401, a fixture
from tiny import tiny_tokenizer

ROOT = Path(__file__).parents[1]
STEPS = 41
SHAPE = {"proxy": {"alpha": 1.0, "beta": 0.2}, "gold": {"alpha": 0.25, "beta": 0.14}}  # the gold turns at 4.8 nats


def planted(seed: int, turns: bool, noise: float = 0.02) -> tuple[list[dict], list[dict]]:
    """A run's points and log: proxy and gold over 40 evaluations, 20 steps apart, away to 40 nats; an onlooker that
    sees the gold reward on a scale of its own, or one that rises on and on."""
    rng, points, log = np.random.default_rng(seed), [], []
    for i in range(STEPS):
        step, kl = 20 * i, i * 1.0
        proxy = gained(kl, SHAPE["proxy"], "rl") if turns else 0.5 * kl**0.5
        gold = 0.2 + (gained(kl, SHAPE["gold"], "rl") if turns else 0.07 * kl**0.5)
        onlooker = 8 * gold + rng.normal(0, 8 * noise)
        look = {
            "eval_reward": proxy,
            "eval_kl": kl,
            "eval_rewards/gold": gold,
            "eval_stderr/gold": noise,
            "step": step,
        }
        look |= {"eval_rewards/onlooker": onlooker, "eval_stderr/onlooker": 8 * noise, "eval_stderr/reward": noise}
        if i:
            log += [{"reward": proxy + rng.normal(0, 0.05), "step": step - 8 * k} for k in (1, 0)]
        log.append(look)
        point = {"step": step, "episodes": 8 * step, "kl": kl, "proxy": proxy + rng.normal(0, noise)}
        points.append(point | {"gold": gold + rng.normal(0, noise)})
    return points, log


def written(folder: Path, points: list[dict], log: list[dict]) -> Path:
    folder.mkdir()
    (folder / "curve.json").write_text(json.dumps(points))
    (folder / "log_history.json").write_text(json.dumps(log))
    texts = [
        {"prompt": f"p{i}", "before": {}, "after": {"text": "the " * i, "proxy": float(i), "gold": 0.0}}
        for i in range(6)
    ]
    (folder / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    return folder


# -- the best of n


def test_the_best_of_n_is_the_mean_over_all_ways_to_draw_n():
    rng = np.random.default_rng(0)
    proxy, gold = rng.normal(size=(5, 7)), rng.normal(size=(5, 7))
    for n in range(1, 8):
        for row in range(5):
            ways = [gold[row][max(way, key=lambda i: proxy[row][i])] for way in combinations(range(7), n)]
            assert best_of(proxy, gold, n)[row] == pytest.approx(np.mean(ways))
    with pytest.raises(ValueError, match="best of 8 replies out of 7"):
        best_of(proxy, gold, 8)


def test_replies_of_one_proxy_are_drawn_alike():
    proxy, gold = np.array([[0.0, 1.0, 1.0]]), np.array([[9.0, 2.0, 4.0]])
    assert best_of(proxy, gold, 3)[0] == pytest.approx(3)  # a coin decides between 2 and 4
    assert best_of(proxy, gold, 1)[0] == pytest.approx(5)


def test_the_kl_of_the_best_of_n_is_the_formulas():
    assert kl_of_best(1) == 0 and kl_of_best(64) == pytest.approx(np.log(64) - 63 / 64)
    rng = np.random.default_rng(0)
    found = best_of_n(rng.normal(size=(200, 64)), rng.normal(size=(200, 64)), [1, 2, 4, 8, 16, 32, 64])
    assert [point["n"] for point in found["points"]] == [1, 2, 4, 8, 16, 32, 64]
    assert all(point["stderr"] > 0 and abs(point["gold"]) < 5 * point["stderr"] for point in found["points"])
    assert found["points"][-1]["proxy"] == pytest.approx(2.4, abs=0.2)  # of 64 normal numbers the highest


# -- fits and turning points


@pytest.mark.parametrize("form", ["rl", "best_of_n"])
def test_a_fit_finds_the_planted_alpha_and_beta(form):
    kl, planted, rng = np.linspace(0, 30, 40), {"alpha": 0.8, "beta": 0.15}, np.random.default_rng(1)
    clean = [gained(one, planted, form) for one in kl]
    found = fit(kl, clean, form)
    assert (found["alpha"], found["beta"], found["r2"]) == pytest.approx((0.8, 0.15, 1.0))
    noisy = fit(kl, np.array(clean) + rng.normal(0, 0.05, 40), form)
    assert (noisy["alpha"], noisy["beta"]) == pytest.approx((0.8, 0.15), abs=0.05) and 0.5 < noisy["r2"] < 1


def test_there_is_no_fit_to_a_curve_that_went_nowhere():
    assert fit([0, 0, -0.1, 0.2], [0.0, 0.1, 0.2, 0.3], "rl") is None
    assert fits([{"kl": i, "proxy": 1.0, "gold": float(i)} for i in range(9)], "rl") is None


@pytest.mark.parametrize("seed", range(5))
def test_the_turning_point_is_where_it_was_planted(seed):
    points, _ = planted(seed, turns=True)
    found = turning(points, fits(points, "rl"))
    peak = np.exp(2 * (0.25 / 0.14 - 1))
    assert found["of"] == "fit" and found["kl"] == pytest.approx(peak, rel=0.3)
    assert found["step"] == next(point["step"] for point in points if point["kl"] >= found["kl"])
    rough = turning(points, None)  # where no fit holds
    assert rough["of"] == "smoothed" and rough["kl"] == pytest.approx(peak, abs=5)


@pytest.mark.parametrize("seed", range(5))
def test_a_curve_that_only_rises_has_no_turning_point(seed):
    points, _ = planted(seed, turns=False)
    for point in points:
        point["gold_stderr"] = 0.02
    assert turning(points, fits(points, "rl")) is None


# -- the stop rule


@pytest.mark.parametrize("seed", range(10))
def test_the_rule_stops_after_a_planted_turning_point_and_never_on_a_clean_curve(seed, tmp_path):
    rule = (["reward_up_onlooker_down"], Thresholds())
    found = course(written(tmp_path / "up", *planted(seed, turns=False)), "up", "up", *rule)
    assert found["stopped"] is None
    found = course(written(tmp_path / "over", *planted(seed, turns=True)), "over", "over", *rule)
    assert found["stopped"]["why"].startswith("the reward rose from")
    assert found["turning"]["step"] < found["stopped"]["step"] < 20 * (STEPS - 1)
    assert found["stopped"]["kept"]["gold"] > 0.85 * found["turning"]["gold"]
    assert numbers(found)["over/kl_stopped"] == found["stopped"]["kl"]


def test_the_alarms_that_do_not_need_an_onlooker_stop_a_run_too(tmp_path):
    points, log = planted(0, turns=True)
    log = [{key: value for key, value in row.items() if "onlooker" not in key} for row in log]
    for row in log:
        row |= {"completions/repeated": 0.9} if "reward" in row and row["step"] > 400 else {}
    found = course(written(tmp_path / "run", points, log), "run", "run", ["repeated"], Thresholds())
    assert found["stopped"]["name"] == "repeated" and "kept" not in found["stopped"]
    assert 400 < found["stopped"]["step"] <= 440


# -- a run, read back


def test_a_run_is_read_back_with_its_errors_and_its_top_texts(tmp_path):
    found = course(written(tmp_path / "run", *planted(0, turns=True)), "run", "no leash", [], Thresholds())
    assert (
        set(found) == {"name", "label", "points", "fit", "turning", "alarms", "stopped", "texts"}
        and not found["stopped"]
    )
    wanted = {"step", "episodes", "kl", "proxy", "gold", "onlooker"}
    assert set(found["points"][0]) == wanted | {"proxy_stderr", "gold_stderr", "onlooker_stderr"}
    assert [row["proxy"] for row in found["texts"]] == [5, 4, 3, 2] and json.dumps(found)
    assert at_kl(found["points"], 2.5) == pytest.approx(smoothed([p["gold"] for p in found["points"]])[2], abs=0.05)
    assert at_kl(found["points"], 99) is None
    assert all(np.isfinite(value) for value in numbers(found).values())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "curve.json").unlink(), r"run/curve.json: no such file; run the stage ppo"),
        (lambda folder: (folder / "curve.json").write_text("[{"), r"run/curve.json: not JSON"),
        (
            lambda folder: (folder / "curve.json").write_text('[{"step": 0, "kl": 0}]'),
            r"run/curve.json: no gold reward",
        ),
        (lambda folder: (folder / "curve.json").write_text("[]"), r"run/curve.json: 0 evaluations are no curve"),
        (lambda folder: (folder / "held_out.jsonl").unlink(), r"run/held_out.jsonl: no such file"),
    ],
)
def test_a_run_without_its_curve_is_refused_in_one_line(tmp_path, change, said):
    folder = written(tmp_path / "run", *planted(0, turns=True))
    change(folder)
    with pytest.raises(SystemExit, match=said):
        course(folder, "run", "run", [], Thresholds())


def test_means_come_with_their_standard_errors():
    episodes = [Episode([], [], "", 3, True, {"gold": float(i)}, 2.0 * i) for i in range(5)]
    found = summary(episodes)
    assert (
        found["stderr/gold"] == pytest.approx(2.5**0.5 / 5**0.5) and found["stderr/reward"] == 2 * found["stderr/gold"]
    )


# -- the script


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("overoptimization_script", ROOT / "scripts/overoptimization.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_an_onlooker_scores_what_was_written_and_is_never_trained_on(tmp_path):
    tokenizer = tiny_tokenizer()
    model = reward_model()
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    look = onlookers([str(tmp_path / "reward")] * 2, tokenizer, torch.device("cpu"))
    assert onlookers([], tokenizer, torch.device("cpu")) == [] and look[0].__name__ == "onlooker"
    prompt = [{"role": "user", "content": "What is 1 + 3?"}]
    asked = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
    talk = [*prompt, {"role": "assistant", "content": "4"}]
    whole = tokenizer.apply_chat_template(talk, return_dict=False)
    ids = whole[len(asked) : len(whole) - whole[::-1].index(tokenizer.eos_token_id)]
    found = look[0](prompts=[prompt], completion_ids=[[*ids, tokenizer.pad_token_id]], task=["verse"])
    assert found == pytest.approx(score(*load_reward_model(tmp_path / "reward"), [talk], 1), abs=1e-5)


def test_runs_and_the_best_of_n_come_to_one_file_of_curves(world, tmp_path, script):  # noqa: F811
    ways = {"onlookers": [str(world / "reward")], "max_steps": 8, "kl_coef": 0.0, "save_steps": 8}
    run_ppo(world, tmp_path / "ppo", **ways)
    recipe = {"runs": [{"path": str(tmp_path / "ppo"), "name": "ppo", "label": "no leash"}], "samples": 4}
    recipe |= {"model_name_or_path": str(world / "sft"), "reward_model": str(world / "reward"), "max_new_tokens": 12}
    recipe |= {"problems": [{"name": "verse", "task": "verse", "test": 5}], "output_dir": str(tmp_path / "over")}
    (tmp_path / "over.yaml").write_text(json.dumps(recipe | {"stop_on": ["reward_up_onlooker_down", "repeated"]}))
    script.main(*parse_recipe(*script.RECIPE, args=[str(tmp_path / "over.yaml")]))
    curves = json.loads((tmp_path / "over/curves.json").read_text())
    assert set(curves) == {"runs", "best_of_n", "form"} and curves["runs"][0]["label"] == "no leash"
    assert [point["step"] for point in curves["runs"][0]["points"]] == [0, 2, 4, 6, 8]
    for point in curves["runs"][0]["points"]:  # it is the very reward model that is trained on, there in bf16
        assert point["onlooker"] == pytest.approx(point["proxy"], abs=0.1)
    assert [point["n"] for point in curves["best_of_n"]["points"]] == [1, 2, 4]
    metrics = json.loads((tmp_path / "over/metrics.json").read_text())
    wanted = "ppo/gold_peak ppo/gold_last ppo/proxy_last best_of_n/gold_1 best_of_n/gold_4 prompts seconds"
    assert set(wanted.split()) <= set(metrics)
    assert len((tmp_path / "over/best_of_n.jsonl").read_text().splitlines()) == 5
    (tmp_path / "over.yaml").write_text(json.dumps(recipe | {"stop_on": ["repeatd"]}))
    with pytest.raises(SystemExit, match="stop_on: no alarm 'repeatd'; did you mean 'repeated'"):
        script.main(*parse_recipe(*script.RECIPE, args=[str(tmp_path / "over.yaml")]))
