"""The house as a whole: scripts, modules, requirements, accelerate configs and the commands that READMEs promise."""

import ast
import importlib
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ruamel.yaml import YAML

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
MODULES = sorted((ROOT / "src/crawl2chat").rglob("*.py"))
READMES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("[a-z]*/**/README.md"))]
READMES = [path for path in READMES if path.exists() and "output" not in path.relative_to(ROOT).parts]
COMMAND = re.compile(r"^(?:[A-Z_]+=\S+ )*(?:\S*python3?|accelerate|bash|make|torchrun) .*$")
owners = cache(packages_distributions)  # top-level module -> distributions
every_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)


def imported(path: Path) -> set[str]:
    """Dotted names of the modules that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def check_command(command: str) -> None:
    """A command names files that are there and flags that its script has."""
    words = shlex.split(command, comments=True)
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    if words[0] == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in words[1:] if "=" not in word} <= set(targets), f"{command}: not in the Makefile"
        return
    if words[1:2] == ["-m"] and words[2].startswith("crawl2chat"):
        assert (ROOT / f"src/{words[2].replace('.', '/')}.py").exists(), command
        return
    for word in words[1:]:
        if re.match(r"(scripts|recipes|accelerate_configs|chat_templates|src|tests)/", word):
            assert (ROOT / word).exists(), f"{command}: no {word}"
    script = next((word for word in words if re.fullmatch(r"scripts/\w+\.(py|sh)", word)), None)
    if script is None:
        return
    given = [word for word in words[words.index(script) :] if word.startswith("--")]
    flags = {re.split(r"[.=]", word[2:])[0] for word in given}
    if script.endswith(".sh"):
        assert all(f"--{flag})" in (ROOT / script).read_text() for flag in flags), command
        return
    known = {item.name for cls in importlib.import_module(Path(script).stem).RECIPE for item in fields(cls)}
    assert flags <= known | {"dry_run", "help"}, f"{command}: {script} has no {', '.join(sorted(flags - known))}"


@pytest.fixture(autouse=True)
def scripts_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))


@every_script
def test_a_script_opens_with_what_it_reads_and_writes_and_its_launch_line(script):
    doc = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8")))
    assert doc and doc.partition("\n\n")[0].endswith("."), "the docstring opens with one sentence"
    assert "\nReads:" in doc and "\nWrites:" in doc
    launches = [line for line in doc.splitlines() if COMMAND.match(line)]
    assert any(f"scripts/{script.name} recipes/" in line for line in launches)
    for line in launches:
        check_command(line)


@every_script
def test_a_script_is_40_to_150_lines_and_ends_in_the_one_bottom_line(script):
    lines = script.read_text(encoding="utf-8").splitlines()
    assert 40 <= len(lines) <= 150, f"{script.name} has {len(lines)} lines"
    assert lines[-2:] == ['if __name__ == "__main__":', "    main(*parse_recipe(*RECIPE))"]


@every_script
def test_a_scripts_name_shadows_no_package(script):
    assert script.stem not in sys.stdlib_module_names
    assert script.stem not in owners()


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_a_module_stays_below_400_lines(module):
    longest = 450 if module.name == "ppo.py" else 400  # a trainer is read as one piece
    assert len(module.read_text(encoding="utf-8").splitlines()) < longest


def test_dependencies_point_from_scripts_to_the_package_to_the_libraries():
    stems = {path.stem for path in SCRIPTS}
    for path in [*SCRIPTS, *MODULES]:
        assert not stems & imported(path), f"{path}: imports a script"
    for path in MODULES:
        if path.parent.name in ("tasks", "tools"):
            ours = {name for name in imported(path) if name.startswith("crawl2chat")}
            rooms = ["tasks", "tools", "verifier"] if path.parent.name == "tasks" else ["tools"]  # what a grader needs
            rooms = tuple(f"crawl2chat.{room}" for room in rooms)
            assert all(name.startswith(rooms) for name in ours), f"{path}: imports {ours}"


def test_every_imported_package_is_pinned():
    pins = {canonicalize_name(pin.name): pin for pin in requirements("requirements.txt", "requirements-optional.txt")}
    assert all(re.fullmatch(r"==[0-9.]+", str(pin.specifier)) for pin in pins.values())
    for path in [*SCRIPTS, *MODULES, *sorted((ROOT / "tests").glob("*.py"))]:
        for name in {name.partition(".")[0] for name in imported(path)}:
            if name in owners() and name not in ("crawl2chat", "packaging", "tomli"):
                # pydantic-monty brings pydantic-monty-client along, which holds the module
                pinned = [pin for owner in owners()[name] for pin in pins if canonicalize_name(owner).startswith(pin)]
                assert pinned, f"{path.relative_to(ROOT)} imports {name} of {owners()[name]}: no requirement"


def test_the_pins_lie_in_the_packages_ranges():
    with open(ROOT / "pyproject.toml", "rb") as handle:
        lines = tomllib.load(handle)["project"]["dependencies"]
    ranges = {canonicalize_name(wanted.name): wanted for wanted in map(Requirement, lines)}
    for pin in requirements("requirements.txt"):
        wanted, version = ranges.get(canonicalize_name(pin.name)), str(pin.specifier).removeprefix("==")
        assert wanted is None or wanted.specifier.contains(version), f"{pin} is not in {wanted}"


def requirements(*files: str) -> list[Requirement]:
    lines = [line for file in files for line in (ROOT / file).read_text(encoding="utf-8").splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("config", sorted((ROOT / "accelerate_configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_an_accelerate_config_loads_and_says_what_it_is(config):
    from accelerate.commands.config.config_args import load_config_from_file

    assert config.read_text(encoding="utf-8").startswith("# ")
    loaded, written = load_config_from_file(str(config)), YAML(typ="safe").load(config)
    assert loaded.num_processes == written["num_processes"]
    if config.stem.startswith("zero"):
        assert loaded.deepspeed_config["zero_stage"] == int(config.stem[4])
    if config.stem == "cpu":
        # accelerate starts one CPU process whatever the number says
        assert loaded.use_cpu and loaded.num_processes == 1


def test_the_accelerate_configs_are_the_nine():
    names = {path.stem for path in (ROOT / "accelerate_configs").glob("*.yaml")}
    assert names == {"cpu", "single_gpu", "ddp", "zero1", "zero2", "zero3", "zero3_offload", "fsdp2", "multi_node"}


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_of_a_readme_names_real_files_and_flags(readme):
    text = readme.read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:bash|sh|console)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    commands = [line.removeprefix("$ ").strip() for line in lines] + re.findall(r"`([^`\n]+)`", text)
    for command in commands:
        if COMMAND.match(command):
            check_command(command)


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_of_a_readme_leads_somewhere(readme):
    for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", readme.read_text(encoding="utf-8")):
        if not target.startswith("output/"):
            assert (readme.parent / target).exists(), f"{readme.relative_to(ROOT)}: no {target}"


def test_shell_scripts_are_sound():
    for path in (ROOT / "scripts/lifecycle.sh", ROOT / ".ci/run"):
        assert subprocess.run(["bash", "-n", str(path)]).returncode == 0
