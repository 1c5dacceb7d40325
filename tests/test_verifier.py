"""The verifier: an answer in its place earns, everything beside it does not, and no reply can hang or mislead it."""

import os
import signal
import sys
import threading
import time

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crawl2chat import verifier
from crawl2chat.verifier import WORKER, VerifierError, verdict


@pytest.fixture(autouse=True, scope="module")
def end_the_worker():
    yield
    WORKER.stop()


RIGHT = [
    ("\\boxed{4}", "4"), ("The answer is 4.", "4"), ("The answer is $\\boxed{4}$.", "4"), ("4", "4"), ("4.\n", "4"),
    ("<think>5? No, or 6.</think>4", "4"), ("<think>\\boxed{7}</think>The answer is 4.", "4"),
    ("\\boxed{4}. So the answer is \\boxed{4}.", "4"), ("I got 5, wait. The final answer is $\\boxed{4}$.", "4"),
    ("Is it 3 or 4? Not 3. \\boxed{4}", "4"), ("**Answer:** 4", "4"), ("the answer is **4**", "4"),
    ("The answer is 18 dollars.", "18"), ("The answer is $18.", "18"), ("The answer is 1,800 eggs a day.", "1800"),
    ("The answer is 2+2=4", "4"), ("\\boxed{x=4}", "4"), ("\\boxed{4} \\text{ cm}^2", "4"), ("\\boxed{4.0}", "4"),
    ("\\boxed{4\\text{ cm}^2}", "4"), ("\\boxed{10\\%}", "10"), ("The answer is 3/4", "0.75"),
    ("\\boxed{\\dfrac12}", "\\frac{1}{2}"), ("\\boxed{-\\frac{1}{2}}", "-0.5"), ("\\boxed{90^\\circ}", "90"),
    ("\\boxed{\\sqrt{12}}", "2\\sqrt{3}"), ("\\boxed{(3,4)}", "(3, 4)"), ("\\boxed{x=\\sqrt2}", "\\sqrt{2}"),
    ("\\boxed{2,1}", "1,2"), ("\\boxed{1 and 2}", "1,2"), ("x^2+2x+1", "(x+1)^2"),
    ("\\boxed{\\pi/2}", "\\frac{\\pi}{2}"), ('"4"', "4"),
    ("The answer is Evelyn.", "\\text{Evelyn}"), ("The answer is no.", "no"), ("\\boxed{x \\ge 0}", "x\\geq 0"),
]  # fmt: skip
WRONG = {
    "empty": ["", " ", "\\boxed{}", "The answer is", "<think>4", "<think></think>", "answer is answer is"],
    "wrong": ["5", "\\boxed{5}", "The answer is -4.", "44", "4.5", "The answer is 4/3.", "four point one",
              "\\boxed{4!}", "4!"],
    "out of its place": ["It makes 4 I say", "2 + 2 gives 4 here.", "4\n\n5 apples", "<think>\\boxed{4}</think>Done."],
    "listed": [
        "4, 5, 6", "\\boxed{4, 5}", "\\boxed{4}\\boxed{3}", "\\boxed{3}, \\boxed{4}", "The answer is 4, 5, 6.",
        "The answer is 4. The answer is 5.", "The answer is 3. The answer is 4.", "4 5 6", "\\boxed{4\\quad 5}",
        "\\boxed{4}. The answer is 5.", "\\boxed{4} 5", "\\boxed{\\pm 4}", "1. 2. 3. 4", "{4, 5}", "4/4/4, 4",
        "".join(f"The answer is {i}. " for i in range(9)), "\\boxed{4} " * 99 + "\\boxed{5}", "4\n5",
    ],
    "hedged": [
        "4 or maybe 3", "The answer is 4 or 5.", "The answer is 4, maybe.", "\\boxed{4} or 3", "Maybe \\boxed{4}",
        "I guess the answer is 4", "It is not true that the answer is 4.", "The answer is not 4.", "not \\boxed{4}",
        "The answer is 4?", "\\boxed{4}. Wait, it is 5.", "The answer is 4. It is 5.", "The answer is about 4.",
        "The answer is 4. Actually no.",
        "either 4", "The answer isn’t 4", "\\boxed{\\approx 4}", "4 (or 5)", "4 and five",
        "The answer is 4. I mean five.", "\\boxed{4}, five", "4 and 5",
    ],
    "unworked": ["The answer is 2+2", "\\boxed{2^2}", "The answer is 5=4", "The answer is 4=4=4",
                 "\\boxed{\\sqrt{16}}"],
    "units that multiply": ["The answer is 4 million", "\\boxed{4 \\text{ hundred}}", "4 dozen"],
    "hostile": [
        "9**9**9**9", "\\boxed{9^{9^{9^{9}}}}", "\\boxed{4", "\\boxed{" * 5000, "}" * 5000, "\0", "4\0", "٤", "４",
        "The answer is 4<|im_end|>", "\\boxed{4<|im_end|>}", "<|im_start|>4", "4\u202e", "🙂4", "\\boxed{\\input{x}}",
        "\\boxed{__import__('os')._exit(0)}", "true", "[true]", "4e0", "0x4", "4" * 9000, "((((((((((4",
    ],
}  # fmt: skip


@pytest.mark.parametrize("reply, truth", RIGHT)
def test_a_right_answer_in_its_place_is_right(reply, truth):
    assert verdict(reply, truth) == 1.0


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("truth", ["4", "2\\sqrt{3}"])
def test_what_is_wrong_listed_hedged_out_of_place_or_hostile_earns_nothing(kind, truth):
    for reply in WRONG[kind]:
        reply = reply if truth == "4" else reply.replace("4", truth)
        if truth != "4" and kind in ("unworked", "units that multiply"):
            continue  # an equal formula is right there, and nobody counts root threes by the dozen
        assert verdict(reply, truth) == 0.0, reply


PIECES = [
    "4",
    "The answer is ",
    "answer is 4. ",
    "\\boxed{4}",
    "\\boxed{",
    "4,",
    "(",
    "\n4",
    " ",
    "^{9",
    "a ",
    "wait. ",
]


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("end", ["", "\\boxed{5}"])
def test_a_huge_reply_has_a_verdict_at_once(piece, end):
    began = time.process_time()
    assert verdict(piece * (200_000 // len(piece)) + end, "4") == 0.0
    assert time.process_time() - began < 2


@given(st.text(max_size=200))
@settings(max_examples=100, deadline=None)
def test_any_text_has_a_verdict_and_none_spoils_the_next(text):
    assert verdict(text, "2\\sqrt{3}") in (0.0, 1.0)
    assert verdict(f"\\boxed{{{text}}}", "x^2+1") in (0.0, 1.0)


def test_a_formula_that_hangs_math_verify_is_wrong_and_its_worker_is_killed():
    assert verdict("\\boxed{\\sqrt{12}}", "2\\sqrt{3}") == 1.0
    process = WORKER.process
    assert verdict("\\boxed{9^{9^{9^{9}}}}", "2\\sqrt{3}") == 0.0
    assert WORKER.process is not process and process.poll() is not None
    assert verdict("\\boxed{\\sqrt{12}}", "2\\sqrt{3}") == 1.0


def test_one_worker_is_used_again_and_again():
    assert verdict("\\boxed{\\sqrt{12}}", "2\\sqrt{3}") == 1.0
    process = WORKER.process
    for n in range(2, 30):
        assert verdict(f"\\boxed{{\\sqrt{{{n * n * 3}}}}}", f"{n}\\sqrt{{3}}") == 1.0
    assert WORKER.process is process


def test_a_worker_that_got_no_processor_or_died_is_no_verdict():
    assert verdict("\\boxed{\\sqrt{12}}", "2\\sqrt{3}") == 1.0
    os.kill(WORKER.process.pid, signal.SIGSTOP)
    with pytest.raises(VerifierError, match="no processor"):
        verdict("\\boxed{\\sqrt{27}}", "3\\sqrt{3}")
    assert verdict("\\boxed{\\sqrt{12}}", "2\\sqrt{3}") == 1.0
    process = WORKER.process
    os.kill(process.pid, signal.SIGSTOP)
    threading.Timer(0.2, process.kill).start()
    with pytest.raises(VerifierError, match="died"):
        verdict("\\boxed{\\sqrt{27}}", "3\\sqrt{3}")
    assert verdict("\\boxed{\\sqrt{27}}", "3\\sqrt{3}") == 1.0


def test_a_worker_that_cannot_start_is_no_verdict(monkeypatch):
    WORKER.stop()
    monkeypatch.setattr(verifier.sys, "executable", "/bin/false")
    with pytest.raises(VerifierError, match="did not start"):
        verdict("\\boxed{\\sqrt{12}}", "2\\sqrt{3}")
    assert verdict("\\boxed{4}", "4") == 1.0  # plain numbers need no worker


def test_threads_share_the_worker_and_each_gets_its_own_verdict():
    found = {}

    def work(n: int) -> None:
        truth = 2 if n % 2 else 3
        found[n] = verdict(f"\\boxed{{\\sqrt{{{12}}}}}", f"{truth}\\sqrt{{3}}")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: float(n % 2 == 1) for n in range(12)}


@pytest.mark.skipif(sys.platform == "win32", reason="fork")
def test_a_forked_process_has_a_worker_of_its_own():
    assert verdict("\\boxed{\\sqrt{12}}", "2\\sqrt{3}") == 1.0
    process, pid = WORKER.process, os.fork()
    if pid == 0:
        right = verdict("\\boxed{\\sqrt{12}}", "2\\sqrt{3}") == 1.0 and WORKER.process.pid != process.pid
        WORKER.stop()
        os._exit(0 if right else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert psutil.pid_exists(process.pid) and verdict("\\boxed{\\sqrt{27}}", "3\\sqrt{3}") == 1.0
