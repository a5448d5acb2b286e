"""Public tokenizers into folders, of ours or of diffusers; the table of those that are known."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.inputs import check_source, names_an_object, open_tokenizer
from tokenizers_mm.checkpoints import check_family, known_families
from tokenizers_mm.config import ConfigError, override
from tokenizers_mm.runtime import local_path

if TYPE_CHECKING:
    from tokenizers_mm.models import Model

LAYOUTS = ("tokenizers-mm", "diffusers")


def convert_tokenizer(source: str, out: Path, *, to: str = "tokenizers-mm", assign: list[str], **given: Any) -> str:
    """Read `source`, write it to `out`, and say in words what it was.

    source  anything `load` takes, or `module:attribute` that names a tokenizer of one of our kinds
    assign  `path.to.key=value` options of the tokenizer; given  the other arguments of `load`
    """
    if to not in LAYOUTS:
        raise ConfigError(f"--to {to}: expected one of {', '.join(LAYOUTS)}")
    local_path(out, "out")  # all before torch is imported or anything is downloaded
    check_source(source, file=given.get("file"), revision=given.get("revision"))
    if given.get("family") is not None:
        check_family(given["family"], source)
    override({}, assign)
    from tokenizers_mm.checkpoints import to_diffusers
    from tokenizers_mm.models import Autoencoder
    from tokenizers_mm.saving import save

    tokenizer = _opened(source, assign, given)
    if to == "diffusers":
        if not isinstance(tokenizer, Autoencoder):
            raise ConfigError(f"--to diffusers: {source} is a {type(tokenizer).__name__}, which has no layout there")
        to_diffusers(tokenizer, out)
    else:
        save(tokenizer, out, card=True)
    return f"{describe(tokenizer)}\nwrote {out}"


def _opened(source: str, assign: list[str], given: dict[str, Any]) -> Model:
    from tokenizers_mm.checkpoints import load
    from tokenizers_mm.saving import check_saved

    if not names_an_object(source):
        return load(source, config=override({}, assign), **given)
    told = [*(f"--{name} {value}" for name, value in given.items() if value is not None), *assign]
    if told:
        raise ConfigError(f"{told[0]}: {source} is made already; such options are for files of weights")
    tokenizer: Any = open_tokenizer(source)
    check_saved(tokenizer)  # refuses what cannot be written
    ours: Model = tokenizer
    return ours


def describe(tokenizer: Model) -> str:
    """Family, licence, tokens and what was left aside, a line each."""
    spec, provenance = tokenizer.spec, tokenizer.provenance
    tokens = f"codes of {' x '.join(map(str, dict.fromkeys(spec.codes)))}" if spec.discrete else f"{spec.dim} channels"
    lines = [
        f"{sum(v.numel() for v in tokenizer.state_dict().values()) / 1e6:.1f} M parameters; an image of "
        f"{spec.image_size[0]} x {spec.image_size[1]} becomes {spec.length} positions: {tokens}"
    ]
    if provenance is not None:
        commit = f" at {provenance.commit}" if provenance.commit else ""
        lines.insert(0, f"{provenance.family} from {provenance.source}{commit}")
        lines.append(f"licence of the code: {provenance.licence_code}; of the weights: {provenance.licence_weights}")
        if provenance.ignored:
            lines.append(f"not needed: {', '.join(provenance.ignored)}")
    return "\n".join(lines)


def families_text(licences: bool = False) -> str:
    """Every row of the table of families, a line each; with licences and paper below it where asked."""
    lines = []
    for row in sorted(known_families(), key=lambda row: row.name):
        size = f", {row.parameters:g} M parameters" if row.parameters else ""
        lines.append(f"{row.name:16} {row.title}{size}")
        if licences:
            lines.append(f"{'':16} code {row.code_licence}; weights {row.weights_licence}; {row.paper}")
    return "\n".join(lines)


def families_table() -> str:
    """The table of families in Markdown, as the documentation has it: name, what it is, size, licence of weights."""
    head = ["| family | what `load` reads | M parameters | licence of the weights |", "|---|---|--:|---|"]
    rows = [
        f"| `{row.name}` | [{row.title}]({row.paper}) | {f'{row.parameters:g}' if row.parameters else ''} "
        f"| {row.weights_licence} |"
        for row in sorted(known_families(), key=lambda row: row.name)
    ]
    return "\n".join([*head, *rows])
