"""The README and docs/ are true: their Python runs, their commands, targets, folders and links exist."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest
import typer

from recipes import cli
from recipes.programs import families_table
from recipes.schema.recipe import load_recipe

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [pytest.param(path, id=path.name) for path in (ROOT / "README.md", *DOCS)]
COMMANDS = typer.main.get_command(cli.app).commands


class Block(NamedTuple):
    language: str
    text: str
    line: int


def blocks(text, language):
    """Fenced blocks of a language, with the line their first line is on; there must be one."""
    found = [
        Block(match[1], match[2], text[: match.start(2)].count("\n") + 1)
        for match in re.finditer(r"^```(\w*)[^\n]*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]
    chosen = [block for block in found if block.language == language]
    assert chosen, f"no ```{language} block"
    return chosen


def run_python(text, name="README.md"):
    """Run every Python block in a namespace of its own; a traceback shows the page's line."""
    for block in blocks(text, "python"):
        code = compile("\n" * (block.line - 1) + block.text, name, "exec")
        exec(code, {"__name__": "__main__"})


def commands(text):
    """Every command of the shell blocks as a list of words; comments and `$` prompts are not part of it."""
    for block in blocks(text, "bash"):
        for line in block.text.replace("\\\n", " ").splitlines():
            line = re.sub(r" > [\w./]+", "", line)  # where its output goes
            lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars="&|;")
            lexer.whitespace_split = True
            words = []
            for word in lexer:
                if set(word) <= set("&|;"):
                    yield words
                    words = []
                else:
                    words.append(word)
            yield words


def check_commands(text):
    """`tmm` lines parse as `tmm` would parse them and their recipes load; `make` targets are in the Makefile."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    known = {"tmm": 0, "make": 0}
    for words in commands(text):
        program, arguments = (words[0], words[1:]) if words else ("", [])
        known[program] = known.get(program, 0) + 1
        if program == "make":
            assert set(arguments) <= targets, f"make {' '.join(arguments)}: the Makefile has {sorted(targets)}"
        if program == "tmm":
            name = arguments[0]
            assert name in COMMANDS, f"tmm {name}: there is no such command"
            options = COMMANDS[name].make_context(name, arguments[1:]).params
            if name == "train" and not options["recipe"].endswith(".yaml"):
                load_recipe(options["recipe"], options["assign"])
    assert known["tmm"]
    return known


def tree_paths(text):
    """Paths of the block that shows the folders: first word of each line, below the last line indented less."""
    (tree,) = [block for block in blocks(text, "") if "tokenizers_mm/ " in block.text]
    above = []
    for line in tree.text.splitlines():
        bare = re.sub(r"[│├└─]", " ", line)
        indent = len(bare) - len(bare.lstrip())
        above = [(depth, name) for depth, name in above if depth < indent]
        above.append((indent, bare.split()[0]))
        yield "/".join(name.rstrip("/") for _, name in above)


def missing_paths(text):
    return [path for path in tree_paths(text) if not (ROOT / path).exists()]


def broken_links(text, folder=ROOT):
    targets = re.findall(r"\]\(([^)#\s]+)", text)
    return [target for target in targets if "://" not in target and not (folder / target).exists()]


@pytest.mark.parametrize("page", PAGES)
def test_python_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "```python\n" in page.read_text() or page.name == "README.md":
        run_python(page.read_text(), page.name)


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_targets_exist(page):
    if "```bash\n" in page.read_text() or page.name == "README.md":
        known = check_commands(page.read_text())
        assert known["make"] or page.name != "README.md"


def test_folders_exist():
    assert missing_paths(README) == []
    listed = {path.split("/")[0] for path in tree_paths(README)}
    assert {"quantizers", "tokenizers_mm", "backbones", "recipes", "benchmarks", "tests"} <= listed


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    assert broken_links(page.read_text(), page.parent) == []


def test_the_table_of_families_is_that_of_the_code():
    """`tmm families --markdown` prints it."""
    assert families_table() in (ROOT / "docs" / "public-tokenizers.md").read_text()


def test_every_page_is_linked_from_the_readme():
    assert [path.name for path in DOCS if f"](docs/{path.name}" not in README] == []
    assert DOCS


# ------------------------------------------------------------------------------------- the checks themselves can fail


def test_a_readme_without_python_fails():
    with pytest.raises(AssertionError, match="no ```python block"):
        run_python("# Title\n\n```bash\nmake demo\n```\n")


def test_failing_python_fails_at_its_line():
    with pytest.raises(ZeroDivisionError) as error:
        run_python("text\n\n```python\na = 1\n```\n\n```python\nb = 2\n1 / 0\n```\n")
    assert error.traceback[-1].lineno == 8  # counted from 0
    with pytest.raises(NameError):
        run_python("```python\na = 1\n```\n\n```python\nprint(a)\n```\n")


GOOD = "make demo && tmm recipes  # all\n$ tmm train shapes_fsq --out r --set train.steps=3 \\\n  --resume\n"


def test_good_commands_pass():
    check_commands(f"```bash\n{GOOD}```\n")


@pytest.mark.parametrize(
    "line",
    [
        "make dmeo",
        "tmm trane shapes_fsq --out r",
        "tmm train shapes_fsq --output r",
        "tmm train shapes_fsq",
        "tmm eval a b --limit many",
        "cd here; tmm verify",
        "tmm train shapes_fsk --out r",
        "tmm train shapes_fsq --out r --set train.step=3",
    ],
)
def test_wrong_commands_fail(line):
    with pytest.raises(Exception, match=r"Makefile|no such|No such|Missing|Invalid|valid integer|unknown key"):
        check_commands(f"```bash\n{GOOD}{line}\n```\n")


def test_missing_folders_and_links_fail():
    tree = "```\ntokenizers_mm/  b\n  data/  c\n    images.py  d\n  dada/  e\n```\n"
    lines = "```\ntokenizers_mm/ b\n├── data/  c\n│   └── images.py  d\n└── dada/  e\n```\n"
    assert list(tree_paths(tree)) == list(tree_paths(lines))
    assert missing_paths(tree) == ["tokenizers_mm/dada"]
    text = "[a](LICENSE) ![b](no.png) [c](https://example.org) [d](#here) [e](README.md#there)"
    assert broken_links(text) == ["no.png"]
