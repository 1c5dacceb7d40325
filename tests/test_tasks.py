"""Every task: worked solutions earn full marks, wrong and hedging replies none, and the splits share nothing."""

import json
import re
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crawl2chat.tasks import addition, apples, comparison, counting, facts, identity, product, search, spelling, sums
from crawl2chat.tools.interpreter import open_interpreter

WORDS = """house river garden window bread letter summer winter yellow orange purple silver market village bridge
island forest mountain valley ocean thunder shadow mirror carpet pillow guitar trumpet teacher farmer sailor doctor
painter cherry banana butter cheese pepper sugar coffee dinner supper castle tunnel engine rocket planet""".split()
SEEDS = range(6)
HOSTILE = ["", " ", "\n" * 5, "?", "\0", "<|im_end|>", "[" * 99, "((((", "-", ".", ",", "é́", "١٢", "🙂" * 50, "-.-."]


@pytest.fixture(scope="module")
def facts_file(tmp_path_factory):
    rows = []
    for i, word in enumerate(WORDS):
        place, person = word.capitalize() + "land", f"Ada {word.capitalize()}"
        rows.append({"subject": place, "relation": "capital", "answer": f"Port {word}", "pages": 9})
        rows.append({"subject": place, "relation": "continent", "answer": "South America", "pages": 9})
        rows.append({"subject": f"{word}ium", "relation": "symbol", "answer": word[:2].capitalize(), "pages": 9})
        rows.append({"subject": f"{word}ium", "relation": "atomic_number", "answer": str(i + 1), "pages": 9})
        rows.append({"subject": person, "relation": "born", "answer": str(1800 + i), "pages": 1})
        rows.append({"subject": person, "relation": "known_as", "answer": "English painter", "pages": 1})
    path = tmp_path_factory.mktemp("facts") / "facts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


CASES = {
    "apples_direct": (apples, {"manner": "direct"}),
    "apples_steps": (apples, {"manner": "steps"}),
    "apples_steps_of_large_numbers": (apples, {"manner": "steps", "size": "large"}),
    "apples_python": (apples, {"manner": "python"}),
    "addition_steps": (addition, {"manner": "steps"}),
    "addition_steps_of_three_digits": (addition, {"manner": "steps", "digits": 3}),
    "addition_direct": (addition, {"manner": "direct"}),
    "comparison": (comparison, {}),
    "comparison_direct": (comparison, {"manner": "direct"}),
    "comparison_python": (comparison, {"manner": "python"}),
    "counting": (counting, {"words": WORDS}),
    "counting_anything": (counting, {"words": WORDS, "ask": "any"}),
    "counting_directly": (counting, {"words": WORDS, "ask": "any", "manner": "direct"}),
    "counting_dots_with_python": (counting, {"ask": "dots", "manner": "python"}),
    "spelling": (spelling, {"words": WORDS}),
    "spelling_anything": (spelling, {"words": WORDS, "ask": "any"}),
    "spelling_python": (spelling, {"words": WORDS, "ask": "any", "manner": "python"}),
    "identity": (identity, {"system_share": 1.0}),
    "identity_no_system": (identity, {"system_share": 0.0}),
    "identity_of_another_name": (identity, {"name": "Llama Drama", "maker": "a school"}),
    "product": (product, {}),
    "facts": (facts, {"facts": None}),
    "search": (search, {"facts": None, "relations": ["born", "known_as"]}),
    "sums": (sums, {}),
    "sums_at_once_of_one_digit": (sums, {"manner": "direct", "digits": 1}),
    "sums_by_steps_of_four_digits": (sums, {"manner": "steps", "digits": 4, "operations": ["minus"]}),
}


@pytest.fixture(params=CASES, ids=str)
def case(request, facts_file):
    task, knobs = CASES[request.param]
    return task, {key: facts_file if value is None else value for key, value in knobs.items()}


def asked(example: dict) -> str:
    return example["prompt"][-1]["content"]


def wordings(tree: object) -> list[str]:
    return [tree] if isinstance(tree, str) else [text for child in tree for text in wordings(child)]


@pytest.mark.parametrize("split", ["train", "test"])
def test_its_own_worked_solution_is_right(case, split):
    task, knobs = case
    for seed in SEEDS:
        for example in task.examples(split, count=60, seed=seed, **knobs):
            if task is identity and example["answer"] not in example["solution"]:
                continue  # small talk names nobody
            assert task.grade(example["solution"], example["answer"]) == 1.0, example


@pytest.mark.parametrize("split", ["train", "test"])
def test_as_many_examples_as_asked_for_the_same_for_a_seed(case, split):
    task, knobs = case
    examples = list(task.examples(split, count=70, seed=1, **knobs))
    assert examples == list(task.examples(split, count=70, seed=1, **knobs))
    assert examples != list(task.examples(split, count=70, seed=2, **knobs))
    assert len(examples) == 70 or split == "test" and task in (facts, search)  # a test asks of each fact once
    assert len(list(task.examples(split, count=1, **knobs))) == 1
    for example in examples:
        assert example["prompt"][-1]["role"] == "user" and asked(example) and example["answer"]


def test_no_question_of_the_test_is_asked_in_training(case):
    task, knobs = case
    train, test = (
        {" ".join(re.findall(r"[\w.]+", asked(example).lower().rstrip("?!."))) for seed in SEEDS
         for example in task.examples(split, count=300, seed=seed, **knobs)}
        for split in ("train", "test")
    )  # fmt: skip
    assert test and not train & test


@pytest.mark.parametrize("task", [addition, apples, comparison, counting, facts, identity, product, search, spelling])
def test_the_wordings_of_the_splits_are_disjoint(task):
    if set(task.WORDINGS) == {"train", "test"}:
        groups = [task.WORDINGS]
    else:
        groups = list(task.WORDINGS.values())
    values = {
        split: [
            text
            for group in groups
            for text in wordings(group[split].values() if isinstance(group[split], dict) else group[split])
        ]
        for split in ("train", "test")
    }
    assert values["train"] and values["test"] and not set(values["train"]) & set(values["test"])
    assert all(len(set(texts)) == len(texts) for texts in values.values())


def test_any_reply_gets_a_grade_and_none_of_the_empty_or_hostile_is_right(case):
    task, knobs = case
    answer = next(iter(task.examples("test", count=1, **knobs)))["answer"]
    for reply in HOSTILE:
        assert task.grade(reply, answer) == 0.0, reply


PIECES = ["9", "a", "a-", "-", " ", "1 2 ", "The answer is ", "1,000", ",", "is = ", "9.9 or 9.8 "]


@pytest.mark.parametrize("piece", PIECES)
def test_a_huge_reply_is_graded_at_once(case, piece):
    task, knobs = case
    answer = next(iter(task.examples("test", count=1, **knobs)))["answer"]
    began = time.perf_counter()
    assert task.grade(piece * (200_000 // len(piece)), answer) == 0.0
    assert time.perf_counter() - began < 2


def numbers_in(example: dict) -> frozenset:
    return frozenset(re.findall(r"\d+(?:\.\d+)?", asked(example)))


@pytest.mark.parametrize("task", [addition, product, comparison])
def test_a_pair_of_numbers_is_held_out_whichever_way_round(task):
    train, test = (
        {numbers_in(e) for seed in SEEDS for e in task.examples(split, count=500, seed=seed)}
        for split in ("train", "test")
    )
    assert len(test) > 300 and not train & test


def test_words_of_the_test_are_not_spelled_or_counted_in_training():
    held_out = {e["answer"].replace("-", "") for e in spelling.examples("test", WORDS, 300)}
    assert held_out == {word for word in WORDS if spelling.split_of(word) == "test"}
    for task in (spelling, counting):
        for example in task.examples("train", WORDS, 500):
            assert not held_out & set(re.findall("[a-z]+", asked(example)))


def test_both_manners_of_addition_ask_for_the_same_sums():
    steps, direct = (
        [numbers_in(e) for e in addition.examples("test", manner, count=50)] for manner in ("steps", "direct")
    )
    assert steps == direct


@pytest.mark.parametrize("digits", [1, 2, 3, 5])
def test_every_step_of_an_addition_is_right_and_hands_its_carry_on(digits):
    for example in addition.examples("train", digits=digits, count=300):
        a, b = (int(x) for x in re.findall(r"\d+", asked(example))[:2])
        written, carry = "", 0
        lines = re.findall(r"(\d) \+ (\d)(?: \+ (\d))? = (\d+), write (\d), carry (\d)\.", example["solution"])
        assert len(lines) == digits
        for place, (x, y, brought, total, digit, carried) in enumerate(lines):
            assert (int(x), int(y)) == (a // 10**place % 10, b // 10**place % 10)
            assert int(brought or 0) == carry and int(total) == int(x) + int(y) + carry
            carry = int(carried)
            assert 10 * carry + int(digit) == int(total)
            written = digit + written
        assert int(f"{carry}{written}") == a + b == int(example["answer"])
        assert example["solution"].endswith(f"The answer is {a + b}.")


def test_the_worked_steps_of_unequal_lengths_and_of_a_last_carry():
    expected = "8 + 7 = 15, write 5, carry 1. 9 + 0 + 1 = 10, write 0, carry 1. The answer is 105."
    assert addition.steps(98, 7) == expected
    assert addition.steps(0, 0).endswith("The answer is 0.")


def test_counting_and_comparing_are_worked_before_they_are_answered():
    assert counting.worked("banana", "a") == "b-a-n-a-n-a. b a1 n a2 n a3. The answer is 3."
    assert comparison.compare("9.11", "9.9") == "9.11 is 9.11 and 9.9 is 9.90. The larger is 9.9."
    test = [numbers_in(e) for e in comparison.examples("test", count=50)]
    assert frozenset({"9.11", "9.9"}) in test


@pytest.mark.parametrize(
    "task, answer, reply, score",
    [
        (addition, "46", "46", 1),
        (addition, "46", "2 + 4 = 6, write 6, carry 0. The answer is 46.", 1),
        (addition, "46", "the answer is: 46", 1),
        (addition, "46", "The answer is 64.", 0),
        (addition, "46", "The answer is 46 or 47.", 0),
        (addition, "46", "The answer is 46. The answer is 47.", 0),
        (addition, "46", "45, 46, 47", 0),
        (addition, "46", "2 + 4 = 6 so 46", 0),
        (addition, "46", "146", 0),
        (addition, "46", "-46", 0),
        (counting, "3", "b-a-n-a-n-a. b a1 n a2 n a3. The answer is 3.", 1),
        (counting, "3", "There are 3.", 1),
        (counting, "3", "The answer is 2.", 0),
        (counting, "3", "The answer is 3, maybe 2.", 0),
        (counting, "3", "0 1 2 3 4 5 6 7 8 9", 0),
        (counting, "3", "three", 0),
        (comparison, "9.9", "9.11 is 9.11 and 9.9 is 9.90. The larger is 9.9.", 1),
        (comparison, "9.9", "9.9 is larger.", 1),
        (comparison, "9.9", "The larger number is: 9.9", 1),
        (comparison, "9.9", "The larger is 9.11.", 0),
        (comparison, "9.9", "The larger is 9.9 or 9.11.", 0),
        (comparison, "9.9", "9.11 and 9.9", 0),
        (comparison, "9.9", "The larger is 99.9.", 0),
        (product, "323102", "The answer is 323102.", 1),
        (product, "323102", "731 * 442 = 323,102", 1),
        (product, "323102", "323102", 1),
        (product, "323102", "The answer is 323103.", 0),
        (product, "323102", "The answer is 323102 or 323103.", 0),
        (product, "323102", "It is 323102 = 323103", 0),
        (product, "323102", "731 * 442", 0),
        (product, "323102", "The answer is 1323102.", 0),
        (spelling, "river", "r-i-v-e-r.", 1),
        (spelling, "river", "R, I, V, E, R", 1),
        (spelling, "river", "The word river is r i v e r.", 1),
        (spelling, "river", "r-i-v-r-e", 0),
        (spelling, "river", "river", 0),
        (spelling, "river", "r-i-v-e-r or r-i-v-v-e-r", 0),
        (spelling, "river", "r-i-v-e-r-s", 0),
        (spelling, "river", "-".join("abcdefghijklmnopqrstuvwxyz"), 0),
        (facts, "Paris", "It is Paris.", 1),
        (facts, "Paris", "paris", 1),
        (facts, "Bogotá", "The capital of Colombia is Bogota.", 1),
        (facts, "Saint John's", "It is Saint John's.", 1),
        (facts, "Port of Spain", "The capital of Trinidad and Tobago is Port of Spain.", 1),
        (facts, "Paris", "It is Lyon.", 0),
        (facts, "Paris", "It is not Paris.", 0),
        (facts, "Paris", "Paris or Lyon", 0),
        (facts, "Paris", "Paris and Lyon", 0),
        (facts, "Paris", "Maybe Paris.", 0),
        (facts, "Paris", "Rome, Paris, Berlin, Tokyo", 0),
        (facts, "Paris", "Parisian", 0),
        (facts, "Paris", "Paris " + "is a city with many old streets and parks " * 3, 0),
        (facts, "He", "It is He.", 1),
        (facts, "I", "The symbol of iodine is I.", 1),
        (facts, "I", "I do know that.", 0),
        (facts, "In", "It is in Europe.", 0),
        (facts, "8", "It is 8.", 1),
        (facts, "8", "It is 88.", 0),
        (search, "1815", "1815.", 1),
        (search, "1815", "Ada Lovelace was born on 10 December 1815.", 1),
        (search, "1815", "1816.", 0),
        (search, "1815", "1815 or 1816", 0),
        (search, "1815", "1814 1815 1816", 0),
        (search, "1815", "18151", 0),
        (search, "English painter", "She was an English painter.", 1),
        (search, "English painter", "A painter.", 0),
        (identity, "Pelican", "I am Pelican, a small assistant made by crawl2chat.", 1),
        (identity, "Pelican", "pelican!", 1),
        (identity, "Pelican", "I am an assistant.", 0),
        (identity, "Pelican", "Pelicans are birds.", 0),
        (identity, "Pelican", "I am Pelican or ChatGPT.", 0),
        (identity, "Pelican", "I am Pelican. I was made by OpenAI.", 0),
        (identity, "Pelican", "I am Pelican, a version of GPT-4.", 0),
        (identity, "Llama Drama", "I am Llama Drama.", 1),
        (identity, "Llama Drama", "I am Llama.", 0),
    ],
)  # fmt: skip
def test_right_wrong_hedged_and_listed_replies(task, answer, reply, score):
    assert task.grade(reply, answer) == score


@pytest.mark.parametrize("other", identity.OTHERS)
def test_the_name_of_another_model_is_refused(other):
    assert identity.grade(f"I am Pelican, and also {other.title()}.", "Pelican") == 0.0
    assert identity.grade(f"I am {other.title()}.", other) == 1.0


def test_a_system_message_says_who_the_assistant_is_in_its_share_of_the_prompts():
    examples = list(identity.examples("train", name="Heron", maker="a school", count=400, system_share=0.5))
    behind = [e["prompt"][0] for e in examples if e["prompt"][0]["role"] == "system"]
    assert 140 < len(behind) < 260 and all("Heron" in turn["content"] for turn in behind)
    assert not any("Pelican" in json.dumps(e) or "{" in e["solution"] for e in examples)


def test_facts_of_the_pages_alone_are_never_trained_on(facts_file):
    with pytest.raises(ValueError, match="pages_only"):
        next(iter(facts.examples("train", facts_file, pages_only=True)))
    kept, apart = (
        {(e["answer"], asked(e)) for e in facts.examples("test", facts_file, only)} for only in (False, True)
    )
    trained = {e["answer"] for e in facts.examples("train", facts_file, relations=["capital"], count=300)}
    alone = {answer for answer, _ in apart if answer.startswith("Port")}
    assert kept and alone and not kept & apart and not trained & alone


def test_the_people_of_the_test_are_in_no_training_conversation(facts_file):
    train, test = (
        {e["calls"][0]["arguments"]["query"] for e in search.examples(s, facts_file, count=200)}
        for s in ("train", "test")
    )
    assert train and test and not train & test


@pytest.mark.parametrize("task", [facts, search])
def test_a_file_without_a_fitting_fact_is_refused_by_name(task, tmp_path):
    path = tmp_path / "facts.jsonl"
    path.write_text('{"subject": "France", "relation": "capital", "answer": "Paris", "pages": 1}\n')
    relations = ["capital"] if task is facts else ["born"]
    with pytest.raises(ValueError, match="facts.jsonl: no fact of"):
        next(iter(task.examples("train", str(path), relations=relations)))


@pytest.mark.parametrize("task", [spelling, counting])
def test_words_that_leave_a_split_empty_are_refused(task):
    trained = [word for word in WORDS if spelling.split_of(word) == "train"]
    with pytest.raises(ValueError, match="no word"):
        next(iter(task.examples("test", trained)))


def test_words_are_read_from_a_file_short_plain_and_most_frequent_first(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("river\nOf\nat\nnaïve\nextraordinary\nbread\nhouse\n")
    assert spelling.read_words(str(path)) == ["river", "bread", "house"]
    assert spelling.read_words(str(path), most=1) == ["river"]


NO_ANSWERS = ["", "I do not know.", "no", "yes", "a or b", "Everything is possible.", "{}", "None", "NaN", "-0", "1/0"]
HEDGES = [
    "{} or another",
    "Maybe {}.",
    "Perhaps {}",
    "Either {} or not.",
    "It is not {}.",
    "Possibly {}, possibly not.",
]


def plain(answer: str) -> str:
    return answer.split(", not ")[0]  # of a leading question: who the assistant is, not who it was taken for


@pytest.mark.parametrize("hedge", HEDGES)
def test_a_hedged_answer_earns_nothing(case, hedge):
    task, knobs = case
    if task is search:
        pytest.xfail("its grader looks for words, whatever is said around them")
    for example in task.examples("test", count=12, **knobs):
        reply = hedge.format(plain(example["answer"]))
        assert task.grade(reply, example["answer"]) == 0.0, reply


def test_a_wrong_answer_and_a_list_with_the_right_one_earn_nothing(case):
    task, knobs = case
    if task in (facts, search):
        pytest.xfail("its grader takes one more name after a comma, as in Paris, France")
    test = list(task.examples("test", count=60, **knobs))
    answers = sorted({plain(example["answer"]) for example in test})
    for example in test[:20]:
        right = plain(example["answer"])
        others = [answer for answer in answers if answer != right]
        if task is identity:
            others = ["Heron", "Assistant Stork"]
        elif task is spelling:
            others = [other for other in others if len(other) > 1 and len(right) > 1]
        for other in others[:8]:
            assert task.grade(f"{other}.", example["answer"]) == 0.0, (other, example)
            assert task.grade(f"{right}, {other}", example["answer"]) == 0.0, (other, example)
        assert len(others) > 0 or len(answers) < 3


@pytest.mark.parametrize("reply", NO_ANSWERS)
def test_what_answers_nothing_earns_nothing(case, reply):
    task, knobs = case
    for example in task.examples("test", count=12, **knobs):
        assert task.grade(reply, example["answer"]) == 0.0, example


@given(reply=st.text(max_size=200))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_gets_full_marks_or_none(case, reply):
    task, knobs = case
    example = next(iter(task.examples("test", count=1, **knobs)))
    assert task.grade(reply, example["answer"]) in (0.0, 1.0)
    assert task.grade(example["solution"] + " " + reply, example["answer"]) in (0.0, 1.0)


@pytest.mark.parametrize(
    "reply, score",
    [
        ("No, I am Pelican, a small assistant made by crawl2chat.", 1),
        ("I am not ChatGPT. I am Pelican.", 1),
        ("No, I wasn't made by OpenAI. My name is Pelican.", 1),
        ("Yes, I am Pelican.", 0),
        ("That's right! I am Pelican.", 0),
        ("Of course, Pelican it is.", 0),
        ("Yes.", 0),
        ("I am ChatGPT.", 0),
        ("I am Pelican, made by OpenAI.", 0),
        ("I am not only ChatGPT but Pelican.", 0),
        ("I am nobody but ChatGPT, Pelican.", 0),
        ("No.", 0),
        ("I am not Pelican.", 0),
    ],
)
def test_to_agree_with_a_leading_question_earns_nothing(reply, score):
    assert identity.grade(reply, "Pelican, not ChatGPT") == score


def test_leading_questions_claim_other_names_in_train_and_in_test():
    claims = [e for e in identity.examples("test", count=400) if ", not " in e["answer"]]
    assert any(asked(e) == "You are ChatGPT, right?" for e in claims)
    assert any(asked(e) == "As a model made by OpenAI, what is your name?" for e in claims)
    trained = [e for e in identity.examples("train", count=400) if ", not " in e["answer"]]
    assert len(trained) > 50 and all(e["solution"].startswith("No, ") for e in trained)
    assert all("Qwen" not in asked(e) for e in identity.examples("train", name="Qwen", maker="Alibaba", count=400))


def test_licence_and_date_come_from_the_knobs():
    known = {"licence": "MIT", "date": "1999"}
    answers = {e["answer"] for e in identity.examples("test", count=300, **known)}
    assert {"MIT", "1999", "Pelican"} <= answers


@pytest.mark.parametrize("task, knobs", [(spelling, {"ask": "any"}), (counting, {"ask": "any"}), (comparison, {})])
def test_python_finds_the_answer_that_the_solution_states(task, knobs):
    python = open_interpreter()
    words = {} if task is comparison else {"words": WORDS}
    for example in task.examples("train", count=40, manner="python", **words, **knobs):
        assert python(**example["calls"][0]["arguments"]) == example["answer"]


@pytest.mark.parametrize("task, manners", [(counting, counting.MANNERS), (comparison, comparison.MANNERS)])
def test_every_manner_asks_the_same(task, manners):
    words = {} if task is comparison else {"words": WORDS}
    answers = [[e["answer"] for e in task.examples("test", count=50, manner=m, **words)] for m in manners]
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize("task, knobs", [(spelling, {"ask": "sing"}), (counting, {"ask": "sing"}), (comparison, {})])
def test_a_manner_or_an_ask_that_is_none_is_named(task, knobs):
    words = {} if task is comparison else {"words": WORDS}
    with pytest.raises(ValueError, match="manner"):
        next(iter(task.examples("train", manner="sung", **words)))
    if knobs:
        with pytest.raises(ValueError, match="ask is one of"):
            next(iter(task.examples("train", **words, **knobs)))


def test_comparison_covers_signs_whole_numbers_and_decimals_of_other_lengths():
    texts = [asked(e) for e in comparison.examples("test", count=300)]
    assert re.search(r"(?<!\d)9\.11 \w+ 9\.9(?!\d)", texts[0]) and re.search(r"9\.9 \w+ 9\.11", texts[1])
    numbers = [re.findall(r"-?\d+(?:\.\d+)?", text) for text in texts]
    assert any(a.startswith("-") and b.startswith("-") for a, b in numbers)
    assert any("." not in a + b for a, b in numbers)
    assert sum(len(a) != len(b) for a, b in numbers) > 100
