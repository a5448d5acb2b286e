"""House policies: who may import whom, no circles, no side effects of an import, nothing that executes data."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("quantizers", "tokenizers_mm", "backbones", "recipes")
# Every room, and which others it may import, from the ground up. Files belong to the longest name that fits them:
# `tokenizers_mm` is the contract, the files beside its rooms, which everything above `quantizers` may import.
CONTRACT = ("quantizers", "tokenizers_mm")
TOKENIZERS = {
    "tokenizers_mm": ("quantizers",),
    "tokenizers_mm.runtime": (),
    "tokenizers_mm.weights": (),
    "tokenizers_mm.saving": ("runtime", "weights"),
    "tokenizers_mm.blocks": (),
    "tokenizers_mm.data": ("runtime",),
    "tokenizers_mm.data.sets": ("runtime", "data"),
    "tokenizers_mm.store": ("runtime", "saving", "data"),
    "tokenizers_mm.towers": ("weights", "saving", "blocks"),
    "tokenizers_mm.nets": ("blocks", "towers"),
    "tokenizers_mm.models": ("weights", "saving", "blocks", "data", "towers", "nets"),
    "tokenizers_mm.losses": ("weights", "towers", "nets"),
    "tokenizers_mm.training": ("runtime", "data", "models", "losses"),
    "tokenizers_mm.training.objective": ("data", "towers", "nets", "models", "losses", "training"),
    "tokenizers_mm.fast.native": (),
    "tokenizers_mm.fast": ("nets", "models", "fast.native"),
    "tokenizers_mm.checkpoints.families": ("weights", "models"),
    "tokenizers_mm.checkpoints": ("weights", "saving", "towers", "models", "checkpoints.families"),
    "tokenizers_mm.measure": ("weights", "data", "data.sets", "towers", "losses"),
    "tokenizers_mm.report": (),
}
RECIPES = {
    "recipes.inputs": (),
    "recipes.jobs": (),
    "recipes.joint": (),
    "recipes.schema": ("joint",),
    "recipes.programs": ("inputs", "joint", "schema"),
    "recipes.gates": ("inputs",),
    "recipes.compare": ("inputs", "programs"),
    "recipes.demo": ("jobs", "schema", "programs", "gates"),
    "recipes.commands": ("inputs", "schema", "programs", "compare", "demo"),
    "recipes": ("commands",),
}
MAY_IMPORT = {
    "quantizers": set(),
    **{room: {*CONTRACT, *(f"tokenizers_mm.{name}" for name in names)} for room, names in TOKENIZERS.items()},
    "backbones": {*CONTRACT, "tokenizers_mm.blocks"},
    **{
        room: {"quantizers", "backbones", *TOKENIZERS, *(f"recipes.{name}" for name in names)}
        for room, names in RECIPES.items()
    },
}
MAY_IMPORT["tokenizers_mm"] = {"quantizers"}
# The faces of the two packages list names of rooms that stand above the contract; nothing inside asks them.
TOP_FACES = {"tokenizers_mm", "recipes"}
IMPORTERS = ("__import__", "importlib.import_module", "import_module")
# The only calls that may be given a name they do not know: `face` imports what the stubs say, which are read as code,
# and `open_tokenizer` the module that a user names as module:attribute.
UNKNOWN_ALLOWED = {("tokenizers_mm/lazy.py", "homes[name]"), ("recipes/inputs/tokenizer_source.py", "name")}
UNKNOWN = "an unknown module"
# Formats that run code when they are read.
FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def sources(root):
    """Code, and the stubs of faces, which are what those import."""
    found = [
        path for package in PACKAGES for kind in ("*.py", "*.pyi") for path in sorted((root / package).rglob(kind))
    ]
    assert len(found) > 200 or root != ROOT
    return found


def module_of(path, root):
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def room_of(module):
    """The room of a module; a folder without a row is a room without a name."""
    return max((room for room in MAY_IMPORT if f"{module}.".startswith(f"{room}.")), key=len, default=None)


@cache
def nodes_of(code, path):
    """Imports and calls, anywhere in the text of a file: all that the checks look at."""
    tree = ast.parse(code, str(path))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom | ast.Call)]


def imports(path, root):
    """(module, name or None) of everything that a file imports, anywhere in it."""
    for node in nodes_of(path.read_text(), path):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(root).with_suffix("").parts[: -node.level] if node.level else ()
            module = ".".join([*package, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                yield (inner, None) if is_module(inner, root) else (module, alias.name)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in IMPORTERS and node.args:
            argument = node.args[0]
            if (path.relative_to(root).as_posix(), ast.unparse(argument)) not in UNKNOWN_ALLOWED:
                yield (argument.value if isinstance(argument, ast.Constant) else UNKNOWN), None


def is_module(name, root):
    path = root / name.replace(".", "/")
    return path.is_dir() or path.with_name(f"{path.name}.py").exists()


def is_ours(module):
    return module.split(".")[0] in (*PACKAGES, "tests", "benchmarks", UNKNOWN)


def floor_violations(root):
    """Imports that no row allows, and names that are taken from inside another room although its face has faces."""
    found = []
    for path in sources(root):
        here = module_of(path, root)
        if here in TOP_FACES:
            continue
        room, where = room_of(here), path.relative_to(root)
        for module, name in imports(path, root):
            other = room_of(module)
            if not is_ours(module) or (other == room and other is not None):
                continue
            if other not in MAY_IMPORT.get(room, set()):
                found.append(f"{where} imports {module}")
            elif name and module != other and behind_a_face(other, name, root):
                found.append(f"{where} imports {name} from {module} instead of {other}")
    return found


def behind_a_face(room, name, root):
    """Whether a room's face can have this name: the contract has none, and a face has no name that is a module's."""
    folder = root / room.replace(".", "/")
    return room != "tokenizers_mm" and (folder / "__init__.pyi").exists() and not is_module(f"{room}.{name}", root)


def file_graph(root):
    """Module -> modules of ours that it imports; the faces of the two packages stand above everything and are left."""
    graph = {module_of(path, root): set() for path in sources(root)}
    for path in sources(root):
        here = module_of(path, root)
        if here not in TOP_FACES:
            graph[here] |= {module for module, _ in imports(path, root) if module in graph} - {here, *TOP_FACES}
    return graph


def circles(graph):
    """Strongly connected components of more than one file (Tarjan's algorithm)."""
    index, low, stack, found = {}, {}, [], []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in index:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == index[node]:
            at = stack.index(node)
            component, stack[at:] = stack[at:], []
            if len(component) > 1:
                found.append(sorted(component))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def unsafe_reads(root):
    found = []
    for path in sources(root):
        where = path.relative_to(root)
        found += [
            f"{where} imports {name}" for name, _ in imports(path, root) if name.split(".")[0] in FORBIDDEN_MODULES
        ]
        for node in nodes_of(path.read_text(), path):
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


def test_rooms():
    assert floor_violations(ROOT) == []


def test_every_folder_is_a_room_of_its_own_or_inside_one():
    """A new folder gets a row here, or is part of a room whose files may all import each other."""
    folders = {module_of(path, ROOT) for path in sources(ROOT) if path.name == "__init__.pyi"}
    assert folders - MAY_IMPORT.keys() == set()
    assert {room for room in MAY_IMPORT if not is_module(room, ROOT)} == set()


def test_rows_go_one_way():
    """No room may import one that may import it, directly or through others."""
    rows = {room: allowed - {room} for room, allowed in MAY_IMPORT.items()}
    assert circles(rows) == []
    assert circles(rows | {"tokenizers_mm.runtime": {"tokenizers_mm.report", "tokenizers_mm.data"}}) != []


def test_no_circles_of_files():
    graph = file_graph(ROOT)
    assert len(graph) > 200
    assert sum(map(len, graph.values())) > 500
    assert circles(graph) == []


def test_api_stands_on_torch_geometry_and_the_contract_of_quantizers_alone():
    third_party = {
        module
        for module, _ in imports(ROOT / "tokenizers_mm" / "api.py", ROOT)
        if module.split(".")[0] not in sys.stdlib_module_names and module != "__future__"
    }
    assert third_party <= {"torch", "quantizers.base", "tokenizers_mm.geometry"}


def test_nothing_executes_data():
    assert unsafe_reads(ROOT) == []


# ------------------------------------------------------------------------------------- the checks themselves can fail

VIOLATIONS = [
    ("quantizers/a.py", "import tokenizers_mm", "imports tokenizers_mm"),
    ("quantizers/a.py", "def f():\n    from backbones.trunk import Trunk", "imports backbones.trunk"),
    ("tokenizers_mm/a.py", "from tokenizers_mm.nets import a", "imports tokenizers_mm.nets"),
    ("tokenizers_mm/nets/a.py", "import backbones", "imports backbones"),
    ("tokenizers_mm/nets/a.py", "from tokenizers_mm.models import f", "imports tokenizers_mm.models"),
    ("tokenizers_mm/saving/a.py", "def f():\n    from tokenizers_mm.checkpoints.loading import load",
     "imports tokenizers_mm.checkpoints.loading"),
    ("tokenizers_mm/losses/__init__.pyi", "from tokenizers_mm.training.loop import f as f",
     "imports tokenizers_mm.training.loop"),
    ("tokenizers_mm/a.py", "from recipes import train", "imports recipes"),
    ("backbones/a.py", "from tokenizers_mm.nets import conv", "imports tokenizers_mm.nets"),
    ("backbones/a.py", "from ..tokenizers_mm.data import b", "imports tokenizers_mm.data"),
    ("backbones/a.py", "import importlib\nimportlib.import_module('recipes.train')", "imports recipes.train"),
    ("backbones/a.py", "import_module(name)", "imports an unknown module"),
    ("tokenizers_mm/a.py", "import_module(homes[name])", "imports an unknown module"),
    ("tokenizers_mm/lazy.py", "import_module(other[name])", "imports an unknown module"),
    ("recipes/a.py", "import benchmarks.test_nearest", "imports benchmarks.test_nearest"),
    ("recipes/schema/a.py", "from recipes.programs import f", "imports recipes.programs"),
    ("recipes/a.py", "import_module(name)", "imports an unknown module"),
    ("recipes/inputs/tokenizer_source.py", "import_module(other)", "imports an unknown module"),
    ("tokenizers_mm/models/a.py", "from tokenizers_mm.nets.faced import f",
     "imports f from tokenizers_mm.nets.faced instead of tokenizers_mm.nets"),
]  # fmt: skip


@pytest.mark.parametrize(("file", "code", "message"), VIOLATIONS)
def test_the_checker_finds_a_planted_import(tmp_path, file, code, message):
    nets = tmp_path / "tokenizers_mm" / "nets"
    nets.mkdir(parents=True)
    (nets / "faced.py").write_text("f = 1\n")
    (nets / "__init__.pyi").write_text("from tokenizers_mm.nets.faced import f as f\n")
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("from tokenizers_mm.api import Tokens\n" if file.startswith("backbones") else "import torch\n")
    assert floor_violations(tmp_path) == []
    path.write_text(code)
    assert [v.removeprefix(f"{file} ") for v in floor_violations(tmp_path)] == [message]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a": "from tokenizers_mm.nets.b import f", "b": "import torch"}, []),
        ({"a": "from tokenizers_mm.nets.b import f", "b": "import tokenizers_mm.nets.a"}, [["a", "b"]]),
        ({"a": "from tokenizers_mm.nets.b import f", "b": "def f():\n    from tokenizers_mm.nets import a"},
         [["a", "b"]]),
        ({"a": "from tokenizers_mm.nets import b", "b": "from tokenizers_mm.nets import c",
          "c": "def f():\n    import tokenizers_mm.nets.a"}, [["a", "b", "c"]]),
        ({"a": "from tokenizers_mm.nets import f", "b": "import torch", "face": "b"}, []),
        ({"a": "from tokenizers_mm.nets import f", "b": "import torch", "face": "a"}, [["", "a"]]),
    ],
)  # fmt: skip
def test_the_checker_finds_a_planted_circle(tmp_path, files, expected):
    folder = tmp_path / "tokenizers_mm" / "nets"
    folder.mkdir(parents=True)
    for name, code in files.items():
        (folder / ("__init__.pyi" if name == "face" else f"{name}.py")).write_text(
            f"from tokenizers_mm.nets.{code} import f as f\n" if name == "face" else code
        )
    prefix = "tokenizers_mm.nets"
    assert circles(file_graph(tmp_path)) == [[f"{prefix}.{name}".rstrip(".") for name in circle] for circle in expected]


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
    names = sorted({module_of(path, ROOT) for path in sources(ROOT)})
    names = [name for name in names if not name.endswith("__main__")]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT_ALL, *names], cwd=home, capture_output=True, text=True,
        env={"PYTHONPATH": str(ROOT), "HF_HOME": str(home / "hf"), "HOME": str(home), "MPLCONFIGDIR": str(fonts)},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(home.iterdir()) == []
