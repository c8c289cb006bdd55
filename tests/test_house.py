"""The house keeps its own rules.

Each rule is a function from a folder and the files committed in it to a list of complaints: an
empty list is a kept rule. Every rule is also shown a house with that one fault planted, so that
a rule which can no longer fail is found out.
"""

import ast
import doctest
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("shared", "agent", "controller")
#: Folders with modules of which docstring examples are run.
IMPORTED = (*SOURCES, "examples")
LONGEST_MODULE = 500
NOT_ON_A_DEVICE = ("flask", "sklearn", "sqlalchemy", "pandas")

Rule = Callable[[Path, list[Path]], list[str]]


def committed(root: Path) -> list[Path]:
    """Paths, relative to root, of what git tracks and of what is about to be added."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        text=True,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout: what is committed cannot be known")
    return [Path(name) for name in listed.stdout.split("\0") if name and (root / name).is_file()]


def product(files: list[Path]) -> list[Path]:
    return [path for path in files if path.parts[0] in SOURCES and path.suffix == ".py"]


def text_of(path: Path) -> str:
    """The file's text; empty for a binary file."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


# ------------------------------------------------------------------------------------- rules


def the_namespace_has_no_init(root: Path, files: list[Path]) -> list[str]:
    return [
        f"{path}: `shoal` is a PEP 420 namespace; this file hides the other two folders"
        for path in files
        if path.name == "__init__.py" and path.parent.name == "shoal"
    ]


# Written in pieces, or this file would break its own rule.
REGISTRY_HOSTS = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("npmjs", "org"),
        ("npmjs", "com"),
        ("yarnpkg", "com"),
        ("deb", "debian", "org"),
        ("security", "debian", "org"),
        ("archive", "ubuntu", "com"),
    )
]
MACHINE_PATHS = ["/" + path for path in ("work/", "root/", "opt/pypi", "opt/wheels")] + [
    "." + "library/"
]
ELSEWHERE = re.compile(
    "|".join(rf"(?<![\w-]){re.escape(host)}" for host in REGISTRY_HOSTS)
    + "|"
    + "|".join(rf"(?<![\w.>}}/-]){re.escape(path)}" for path in MACHINE_PATHS)
)


def nothing_names_a_registry_or_this_machine(root: Path, files: list[Path]) -> list[str]:
    return [
        f"{path}:{number}: names {found.group()!r}"
        for path in files
        for number, line in enumerate(text_of(root / path).splitlines(), 1)
        if (found := ELSEWHERE.search(line))
    ]


def every_locked_package_has_a_hash(root: Path, files: list[Path]) -> list[str]:
    locks = [path for path in files if path.parts[0] == "requirements" and path.suffix == ".txt"]
    complaints = [] if locks else ["requirements/: no lock at all"]
    for path in locks:
        joined = (root / path).read_text().replace("\\\n", " ")
        for line in filter(None, (line.strip() for line in joined.splitlines())):
            if line.startswith("#"):
                continue
            if not re.match(r"[a-z0-9][a-z0-9._-]*==\S+ .*--hash=sha256:[0-9a-f]{64}", line):
                complaints.append(f"{path}: not pinned by hash: {line[:60]}")
    return complaints


def every_browser_library_is_pinned_and_has_no_address(root: Path, files: list[Path]) -> list[str]:
    lock = json.loads((root / "package-lock.json").read_text())
    packages = {name: facts for name, facts in lock["packages"].items() if name}
    return [
        f"{name}: no integrity hash" for name, x in packages.items() if "integrity" not in x
    ] + [
        f"{name}: `resolved` names {x['resolved']}"
        for name, x in packages.items()
        if "resolved" in x
    ]


def no_module_is_longer_than_a_sitting(root: Path, files: list[Path]) -> list[str]:
    return [
        f"{path}: {lines} lines; a file of {LONGEST_MODULE} is asking to be two"
        for path in files
        if path.suffix == ".py" and (lines := text_of(root / path).count("\n")) > LONGEST_MODULE
    ]


VAGUE = {"manager", "handler", "util", "helper", "common"}
#: Words of this house's first year for which the field has a term: see CONTRIBUTING, Glossary.
QUAINT = {
    "voice": "reporter", "testimony": "session report", "probation": "acceptance",
    "willing": "eligibility", "lesson": "training", "hiding": "secure aggregation",
    "easing": "throttling", "lane": "attempt", "desk": "context", "neighbour": "peer",
    "stick": "offline bundle", "parcel": "sealed message",
    "misfit": "validation error", "dialect": "MQTT version", "speech": "messages",
    "talk": "messages", "circle": "secure aggregation session", "board": "stepper",
    "seat": "member", "blamed": "excluded", "suspicion": "outlier score", "house": "services",
    "pupil": "client", "taught": "trained", "liar": "hostile device", "ear": "callbacks",
    "tell": "report", "told": "reported", "hear": "receive", "heard": "received", "say": "report",
    "said": "reported", "wish": "request", "vouch": "floor", "believed": "trusted",
    "listening": "listener",
}  # fmt: skip
#: Names in the API's document, and neighbours in a graph.
KEPT_NAMES = {
    "ParcelForm", "ParcelReceipt", "import_parcel", "Hiding", "neighbours", "neighbours_of",
}  # fmt: skip


def words(name: str) -> set[str]:
    """The words of a snake_case or CamelCase name, without a plural s."""
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    return {part.lower().removesuffix("s") for part in parts}


def names_say_what_a_thing_is(root: Path, files: list[Path]) -> list[str]:
    complaints = []
    for path in product(files):
        for word in sorted(words(path.stem) & VAGUE):
            complaints.append(f"{path}: a module named {word!r} says nothing of what it does")
        for node in ast.walk(ast.parse(text_of(root / path), str(path))):
            if isinstance(node, ast.ClassDef) and (vague := words(node.name) & VAGUE):
                complaints.append(f"{path}:{node.lineno}: class {node.name}: {min(vague)!r}?")
    return complaints


def names_are_the_fields_terms(root: Path, files: list[Path]) -> list[str]:
    complaints = []
    for path in product(files):
        names = [(path.stem, 1)] + [
            (node.name, node.lineno)
            for node in ast.walk(ast.parse(text_of(root / path), str(path)))
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        complaints += [
            f"{path}:{line}: {name}: {word!r} is {QUAINT[word]!r} in this field"
            for name, line in names
            if name not in KEPT_NAMES
            for word in sorted(words(name) & QUAINT.keys())
        ]
    return complaints


RULES: list[Rule] = [
    the_namespace_has_no_init,
    nothing_names_a_registry_or_this_machine,
    every_locked_package_has_a_hash,
    every_browser_library_is_pinned_and_has_no_address,
    no_module_is_longer_than_a_sitting,
    names_say_what_a_thing_is,
    names_are_the_fields_terms,
]

GOOD_LOCK = f"numpy==2.4.6 \\\n    --hash=sha256:{'0' * 64}\n    # via shoal\n"
GOOD_NPM = '{"packages": {"": {}, "node_modules/uplot": {"integrity": "sha512-x"}}}'
FAULTS: list[tuple[Rule, str, str]] = [
    (the_namespace_has_no_init, "agent/shoal/__init__.py", ""),
    (nothing_names_a_registry_or_this_machine, "a.md", f"from https://files.{REGISTRY_HOSTS[1]}/"),
    (nothing_names_a_registry_or_this_machine, "a.toml", f'path = "{MACHINE_PATHS[0]}main"'),
    (nothing_names_a_registry_or_this_machine, "a.sh", f"cat {MACHINE_PATHS[-1]}x"),
    (every_locked_package_has_a_hash, "requirements/more.txt", "numpy==2.4.6\n"),
    (every_locked_package_has_a_hash, "requirements/more.txt", "--index-url https://x\n"),
    (every_locked_package_has_a_hash, "requirements/more.txt", "numpy>=2 \\\n --hash=sha256:0\n"),
    (
        every_browser_library_is_pinned_and_has_no_address,
        "package-lock.json",
        GOOD_NPM.replace('"integrity"', '"resolved": "https://x", "integrity"'),
    ),
    (no_module_is_longer_than_a_sitting, "shared/shoal/long.py", "x = 1\n" * 501),
    (names_say_what_a_thing_is, "shared/shoal/wire_utils.py", ""),
    (names_say_what_a_thing_is, "shared/shoal/wire.py", "class RolloutManager: ...\n"),
    (names_say_what_a_thing_is, "agent/shoal/agent/helpers.py", ""),
    (names_are_the_fields_terms, "agent/shoal/agent/telemetry/voice.py", ""),
    (names_are_the_fields_terms, "shared/shoal/wire.py", "def tell_device() -> None: ...\n"),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps_its_rules(rule: Rule) -> None:
    assert rule(ROOT, committed(ROOT)) == []


@pytest.mark.parametrize(("rule", "name", "text"), FAULTS, ids=lambda x: getattr(x, "__name__", ""))
def test_each_rule_finds_a_planted_fault(rule: Rule, name: str, text: str, tmp_path: Path) -> None:
    house = {"requirements/dev.txt": GOOD_LOCK, "package-lock.json": GOOD_NPM}
    assert rule(tmp_path, plant(tmp_path, house)) == []
    assert len(rule(tmp_path, plant(tmp_path, house | {name: text}))) == 1


def plant(root: Path, house: dict[str, str]) -> list[Path]:
    for name, text in house.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return [Path(name) for name in house]


# ------------------------------------------------------------------------------------- the device

IMPORT_THE_AGENT = """
import importlib, pkgutil, sys
import shoal.agent
for module in pkgutil.walk_packages(shoal.agent.__path__, "shoal.agent."):
    importlib.import_module(module.name)
print(" ".join(name for name in sys.argv[1:] if name in sys.modules))
"""


def loaded_by_the_agent(*names: str) -> list[str]:
    """Which of these modules are loaded once every module of the agent is."""
    run = subprocess.run(
        [sys.executable, "-c", IMPORT_THE_AGENT, *names], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


def test_the_whole_agent_loads_no_controller_library() -> None:
    assert loaded_by_the_agent(*NOT_ON_A_DEVICE) == []


def test_the_agents_process_does_not_load_numpys_random_numbers() -> None:
    """2.5 MB, for which an annotation that is evaluated is enough; the trainer may load them."""
    code = "import sys, shoal.agent.process; print('numpy.random' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout == "False\n", run.stderr


@pytest.mark.parametrize(
    "module",
    ["federated.io.trainer_process", "update.io.trial", "serving.io.embedded"],
)
def test_the_trainer_the_probe_and_programs_with_a_session_load_no_tuf(module: str) -> None:
    """6 MB each, and time of every update: the agent has verified what they are given."""
    code = f"import sys, shoal.agent.{module}; print('tuf' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout == "False\n", run.stderr


def test_a_library_that_the_agent_does_load_would_be_seen() -> None:
    assert loaded_by_the_agent("msgspec", *NOT_ON_A_DEVICE) == ["msgspec"]


# ------------------------------------------------------------------------------------- examples


def modules_with_examples() -> Iterator[str]:
    for source in IMPORTED:
        for path in sorted((ROOT / source).rglob("*.py")):
            if re.search(r"^ *>>> (?!.*# doctest: \+SKIP)", text_of(path), re.MULTILINE):
                yield ".".join(path.relative_to(ROOT / source).with_suffix("").parts)


@pytest.mark.parametrize("name", [*modules_with_examples()])
def test_every_example_in_a_docstring_is_true(name: str) -> None:
    results = doctest.testmod(
        importlib.import_module(name.removesuffix(".__init__")),
        optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS,
    )
    assert results.attempted > 0
    assert results.failed == 0
