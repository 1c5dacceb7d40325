"""What a prompt makes of a base model, measured on stand-ins whose right answers are known."""

import json

import pytest

from crawl2chat import evaluation, prompting
from crawl2chat.data.translation import pairs
from crawl2chat.engine import Completion
from crawl2chat.prompting import Assistant, Exchange, Translation, converse, transcript_table, translate
from crawl2chat.prompting import translation_table as table
from crawl2chat.protocol import END_OF_TEXT
from tiny import tiny_model, tiny_tokenizer

LAYOUT = "- {word} => {translation}\n"
TURNS = [Exchange("What is the capital of France?", "It is Paris."), Exchange("Who are you?", "A small assistant.")]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer(END_OF_TEXT)


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny_model(tokenizer)


@pytest.fixture
def words(tmp_path):
    path = tmp_path / "translation.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in pairs()))
    return Translation(LAYOUT, str(path), other="spanish", shots=3, questions=20)


def speaker(answer):
    """A stand-in for `complete`: `answer` says what comes after a prompt, the model then writes on."""

    def complete(model, tokenizer, prompts, max_new_tokens, **options):
        assert all(prompt.startswith(END_OF_TEXT) for prompt in prompts)
        return [Completion(answer(prompt.removeprefix(END_OF_TEXT)), [1], False) for prompt in prompts]

    return complete


def translator(prompt: str) -> str:
    """Knows both languages of every listed word and takes the language of the first example; without one, guesses."""
    rows = {row["english"]: row for row in pairs() if row["listed"]}
    *shots, question = prompt.split("\n")
    asked = question.removeprefix("- ").removesuffix(" =>")
    languages = [name for name in ("french", "spanish") if shots and shots[0].endswith(f" {rows_of(shots[0])[name]}")]
    if asked not in rows or not languages:
        return " perhaps\n- and => on"
    return f" {rows[asked][languages[0]].upper()}\n- and => on"


def rows_of(shot: str) -> dict:
    return next(row for row in pairs() if row["english"] == shot.removeprefix("- ").partition(" =>")[0])


def test_a_model_that_follows_the_examples_is_right_by_examples_alone(words, model, tokenizer, monkeypatch):
    monkeypatch.setattr(prompting, "complete", speaker(translator))
    metrics, found = translate(model, tokenizer, words)
    assert metrics["few_shot_accuracy"] == metrics["one_shot_accuracy"] == 1
    assert metrics["zero_shot_accuracy"] == metrics["unlisted_accuracy"] == metrics["shuffled_shots_accuracy"] == 0
    assert metrics["other_shots_accuracy"] == 0 and metrics["other_language_accuracy"] == 1
    few = found[0]
    assert few["name"] == "few_shot_accuracy" and len(few["rows"]) == 20
    assert few["prompt"].count("=>") == 4 and few["prompt"].endswith(" =>")
    assert len(found[-1]["rows"]) == sum(not row["listed"] for row in pairs())


def test_a_word_is_never_its_own_example(words, model, tokenizer, monkeypatch):
    seen = []
    monkeypatch.setattr(prompting, "complete", speaker(lambda prompt: seen.append(prompt) or " x\n"))
    translate(model, tokenizer, words)
    for prompt in seen:
        lefts = [line.removeprefix("- ").partition(" =>")[0] for line in prompt.split("\n")]
        assert len(set(lefts)) == len(lefts)


def test_only_the_exact_word_up_to_the_layouts_end_is_right(model, tokenizer, monkeypatch):
    pairs = Translation(
        "{word} = {translation}; ", words={"cheese": "Fromage", "bread": "pain", "water": "eau"}, shots=2
    )
    answers = {"cheese =": " fromage; water = eau", "bread =": " pains; ", "water =": " eau and more; "}
    monkeypatch.setattr(prompting, "complete", speaker(lambda prompt: answers[prompt.split("; ")[-1]]))
    metrics, found = translate(model, tokenizer, pairs)
    assert metrics["few_shot_accuracy"] == pytest.approx(1 / 3)
    assert {row["said"] for row in found[0]["rows"]} == {"fromage", "pains", "eau and more"}
    assert "other_language_accuracy" not in metrics and "unlisted_accuracy" not in metrics


def test_a_real_model_gets_a_number_and_the_same_one_again(words, model, tokenizer):
    metrics, found = translate(model, tokenizer, words)
    assert metrics == translate(model, tokenizer, words)[0]
    assert all(0 <= value <= 1 for value in metrics.values())
    assert "words that stand on no page" in table(found)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"layout": "{word} is {translation}"}, "must hold {word}, then {translation}, then what ends it"),
        ({"layout": "{translation} of {word}\n"}, "must hold"),
        ({"pairs": None, "words": {"cheese": "fromage"}}, "1 words are too few for 3 examples"),
        ({"language": "korean"}, "lacks 'korean'"),
    ],
)
def test_pairs_or_a_layout_that_cannot_be_asked_are_one_clear_line(words, model, tokenizer, change, says):
    for key, value in change.items():
        setattr(words, key, value)
    with pytest.raises(SystemExit) as stop:
        translate(model, tokenizer, words)
    assert says in stop.value.code and "\n" not in stop.value.code


def test_worked_turns_stand_before_the_question_and_not_in_the_bare_transcript(model, tokenizer, monkeypatch):
    def answer(prompt: str) -> str:
        if "Assistant: It is Paris." in prompt:
            return " It is Lima.\n\nHuman: And"
        return " It is Tokyo.\nMarla: Who?" if "Assistant:" in prompt else " Lima\nIt is Tokyo."

    monkeypatch.setattr(evaluation, "complete", speaker(answer))
    monkeypatch.setattr(prompting, "complete", speaker(answer))
    asked = [Exchange("What is the capital of Peru?", "Lima"), Exchange("What is the capital of Japan?", "Tokyo")]
    metrics, found = converse(model, tokenizer, Assistant(TURNS, asked=asked * 2, questions=3))
    assert metrics["transcript_accuracy"] == metrics["question_alone_accuracy"] == pytest.approx(2 / 3)
    assert metrics["transcript_accuracy_bare"] == pytest.approx(1 / 3)  # whoever speaks next, the answer has ended
    assert metrics["transcript_ended"] == 1
    assert found["rows"][0] == {"question": asked[0].human, "answer": "Lima", "said": "It is Lima.", "score": 1.0}
    assert [turn["role"] for turn in found["preface"]] == ["user", "assistant"] * 2 and len(found["alone"]) == 3
    assert "66.7% right after 2 worked turns" in transcript_table(metrics, found)


def test_a_transcript_that_does_not_fit_the_model_is_one_clear_line(model, tokenizer):
    long = [Exchange("Who are you? " * 40, "It is Paris.")]
    with pytest.raises(SystemExit, match="assistant: .*; give fewer turns"):
        converse(model, tokenizer, Assistant(long * 3, asked=TURNS))


def test_questions_of_a_task_are_its_held_out_ones(tmp_path, model, tokenizer):
    facts = tmp_path / "facts.jsonl"
    rows = [{"subject": f"Land {i}", "relation": "capital", "answer": f"City {i}", "statement": "-", "pages": 9}
            for i in range(40)]  # fmt: skip
    facts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    knobs = {"facts": str(facts), "relations": ["capital"], "pages_only": True}
    _, found = converse(model, tokenizer, Assistant(TURNS, knobs=knobs, questions=4))
    assert len(found["rows"]) == 4
    with pytest.raises(SystemExit, match="assistant: .*nothing.jsonl.*; check the knobs of task facts"):
        converse(model, tokenizer, Assistant(TURNS, knobs={"facts": "nothing.jsonl"}))
