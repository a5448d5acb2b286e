"""House policies: who may import whom, no side effects of an import, nothing that executes data."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("quantizers", "tokenizers_mm", "backbones", "recipes")
# What each floor may import of ours. A name ending in a dot allows everything below it.
ALLOWED = {
    "quantizers": ("quantizers", "quantizers."),
    "tokenizers_mm": ("tokenizers_mm", "tokenizers_mm.", "quantizers", "quantizers."),
    "backbones": ("backbones", "backbones.", "tokenizers_mm.api", "quantizers", "quantizers."),
    "recipes": tuple(name + dot for name in PACKAGES for dot in ("", ".")),
}
IMPORTERS = ("__import__", "importlib.import_module", "import_module", "face")
# The only calls that may be given a name they do not know, each with its argument: `face` imports what the tables say,
# which are read where they stand, and `open_tokenizer` the module that a user names as module:attribute.
UNKNOWN_ALLOWED = {("tokenizers_mm/lazy.py", "homes[name]"), ("recipes/programs/tokenizer_source.py", "name")}
UNKNOWN = "an unknown module"
# Formats that run code when they are read.
FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def sources(root):
    found = [path for package in PACKAGES for path in sorted((root / package).rglob("*.py*")) if path.suffix != ".pyc"]
    assert len(found) > 4 or root != ROOT
    return found


def imported(path, root):
    """Modules that a file imports, anywhere in it; `from a import b` counts as a.b where that is a module."""
    tree = ast.parse(path.read_text(), str(path))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(root).with_suffix("").parts[: -node.level] if node.level else ()
            module = ".".join([*package, *([node.module] if node.module else [])])
            inner = root / module.replace(".", "/")
            for alias in node.names:
                is_module = (inner / alias.name).is_dir() or (inner / f"{alias.name}.py").exists()
                yield f"{module}.{alias.name}" if is_module else module
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in IMPORTERS:
            yield from called(node, tree, path.relative_to(root).as_posix())


def called(call, tree, file):
    """Modules that such a call imports: the constant it is given, or those of the literal table of a package's face."""
    function, argument = ast.unparse(call.func), ast.unparse(call.args[-1])
    if function == "face":
        (values,) = [
            node.value.values
            for node in tree.body
            if isinstance(node, ast.Assign)
            and ast.unparse(node.targets[0]) == argument
            and isinstance(node.value, ast.Dict)
        ] or [[None]]
    else:
        values = call.args[:1]
    if (file, argument) in UNKNOWN_ALLOWED:
        return []
    return [value.value if isinstance(value, ast.Constant) else UNKNOWN for value in values]


def floor_violations(root):
    found = []
    for path in sources(root):
        allowed = ALLOWED[path.relative_to(root).parts[0]]
        for name in imported(path, root):
            ours = name.split(".")[0] in (*PACKAGES, "tests", "benchmarks", UNKNOWN)
            if ours and not any(name == a or (a.endswith(".") and name.startswith(a)) for a in allowed):
                found.append(f"{path.relative_to(root)} imports {name}")
    return found


def unsafe_reads(root):
    found = []
    for path in sources(root):
        where = path.relative_to(root)
        found += [f"{where} imports {name}" for name in imported(path, root) if name.split(".")[0] in FORBIDDEN_MODULES]
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if (
                (name == "torch.load" and given.get("weights_only") != "True")
                or name in ("yaml.load", "yaml.unsafe_load", "yaml.full_load")
                or given.get("allow_pickle") == "True"
                # accelerate pickles what it saves so; it goes into safetensors and JSON instead
                or name.endswith((".register_for_checkpointing", ".save_state", ".load_state"))
            ):
                found.append(f"{where}:{node.lineno} calls {name}")
    return found


def test_floors():
    assert floor_violations(ROOT) == []


def test_api_stands_on_torch_and_the_contract_of_quantizers_alone():
    third_party = {
        name
        for name in imported(ROOT / "tokenizers_mm" / "api.py", ROOT)
        if name.split(".")[0] not in sys.stdlib_module_names and name != "__future__"
    }
    assert third_party <= {"torch", "quantizers.base"}


def test_nothing_executes_data():
    assert unsafe_reads(ROOT) == []


VIOLATIONS = [
    ("quantizers/a.py", "import tokenizers_mm", "imports tokenizers_mm"),
    ("quantizers/a.py", "def f():\n    from backbones.trunk import Trunk", "imports backbones.trunk"),
    ("tokenizers_mm/nets/a.py", "import backbones", "imports backbones"),
    ("tokenizers_mm/a.py", "from recipes import train", "imports recipes"),
    ("backbones/a.py", "from tokenizers_mm import autoencoder", "imports tokenizers_mm"),
    ("backbones/a.py", "from tokenizers_mm.api_more import x", "imports tokenizers_mm.api_more"),
    ("backbones/a.py", "from ..tokenizers_mm import b", "imports tokenizers_mm"),
    (
        "backbones/a.py",
        "import importlib\nimportlib.import_module('recipes.programs.train')",
        "imports recipes.programs.train",
    ),
    ("backbones/a.py", "import_module(name)", "imports an unknown module"),
    (
        "backbones/__init__.py",
        "HOMES = {'f': 'recipes.programs.train'}\nface(__name__, HOMES)",
        "imports recipes.programs.train",
    ),
    ("backbones/__init__.py", "HOMES = {'f': f'recipes.{x}'}\nface(__name__, HOMES)", "imports an unknown module"),
    ("backbones/__init__.py", "HOMES = dict(f='recipes')\nface(__name__, HOMES)", "imports an unknown module"),
    ("tokenizers_mm/a.py", "import_module(homes[name])", "imports an unknown module"),
    ("tokenizers_mm/lazy.py", "import_module(other[name])", "imports an unknown module"),
    ("recipes/a.py", "import benchmarks.test_nearest", "imports benchmarks.test_nearest"),
    ("recipes/a.py", "import_module(name)", "imports an unknown module"),
    ("recipes/programs/tokenizer_source.py", "import_module(other)", "imports an unknown module"),
    ("tokenizers_mm/checkpoints/loading.py", "import_module(name)", "imports an unknown module"),
]


@pytest.mark.parametrize(("file", "code", "message"), VIOLATIONS)
def test_the_checker_finds_a_planted_import(tmp_path, file, code, message):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text("from tokenizers_mm.api import Tokens\n" if file.startswith("backbones") else "import torch\n")
    assert floor_violations(tmp_path) == []
    path.write_text(code)
    assert [v.removeprefix(f"{file} ") for v in floor_violations(tmp_path)] == [message]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def f():\n    import pickle", "imports pickle"),
        ("from joblib import dump", "imports joblib"),
        ("torch.load('x')", "calls torch.load"),
        ("torch.load('x', weights_only=False)", "calls torch.load"),
        ("yaml.load(text, Loader=yaml.Loader)", "calls yaml.load"),
        ("np.load('x', allow_pickle=True)", "calls np.load"),
        ("accelerator.register_for_checkpointing(ema)", "calls accelerator.register_for_checkpointing"),
        ("accelerator.load_state('x')", "calls accelerator.load_state"),
    ],
)
def test_the_checker_finds_planted_unsafe_reads(tmp_path, code, message):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "a.py").write_text("torch.load('x', weights_only=True)\nyaml.safe_load('x')")
    assert unsafe_reads(tmp_path) == []
    (tmp_path / "recipes" / "a.py").write_text(code)
    (violation,) = unsafe_reads(tmp_path)
    assert violation.endswith(message)


IMPORT_ALL = """
import importlib, socket, sys, threading
import torch

def refuse(*args, **kwargs):
    raise AssertionError("an import opens a connection")

socket.socket.connect = socket.getaddrinfo = refuse
before = torch.get_rng_state(), torch.get_num_threads(), torch.get_default_dtype()
for name in sys.argv[1:]:
    importlib.import_module(name)
assert torch.equal(before[0], torch.get_rng_state()), "an import draws random numbers"
assert before[1:] == (torch.get_num_threads(), torch.get_default_dtype()), "an import changes torch's settings"
assert threading.enumerate() == [threading.main_thread()], threading.enumerate()
assert "diffusers" not in sys.modules, "only functions that are asked for it import diffusers"
"""


def test_importing_every_module_has_no_side_effect_and_warns_of_nothing(tmp_path):
    home, fonts = tmp_path / "home", tmp_path / "fonts"  # matplotlib, which others import, keeps a list of fonts
    home.mkdir()
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sources(ROOT)]
    names = [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT_ALL, *names], cwd=home, capture_output=True, text=True,
        env={"PYTHONPATH": str(ROOT), "HF_HOME": str(home / "hf"), "HOME": str(home), "MPLCONFIGDIR": str(fonts)},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(home.iterdir()) == []
