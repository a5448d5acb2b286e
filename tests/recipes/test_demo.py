from pathlib import Path

import pytest
from typer.testing import CliRunner

from recipes import cli
from recipes.demo import run
from recipes.demo.run import demo_jobs, run_demo
from recipes.gates.figures import Findings
from recipes.inputs.run_folder import trained_precision
from recipes.jobs.queue import run_jobs


def findings_of(folder: Path) -> Findings:
    return Findings.from_json((folder / "findings.json").read_text())


def test_every_job_comes_after_what_it_needs():
    jobs = demo_jobs(Path("demo"))
    names = [job.name for job in jobs]
    assert len(set(names)) == len(names) == 8
    for job in jobs:
        assert set(job.needs) <= set(names[: names.index(job.name)])
    assert demo_jobs(Path("demo"), quick=True)[0].steps < jobs[0].steps


def test_a_folder_with_something_else_is_not_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("dear")
    with pytest.raises(ValueError, match="holds no demo: choose another folder"):
        run_demo(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "dear"


def one_process(jobs, log_folder):
    """The first job as the demo runs it; the others, which would only import torch again, in this process."""
    seconds = run_jobs(jobs[:1], log_folder, cores=1)
    for job in jobs[1:]:
        result = CliRunner().invoke(cli.app, list(job.arguments), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        seconds[job.name] = 1.0
    return seconds


def test_the_quick_demo_goes_all_the_way(tmp_path, small_photos, monkeypatch):
    monkeypatch.setattr(run, "run_jobs", one_process)
    monkeypatch.setattr(run, "_QUICK_IMAGES", 64)
    monkeypatch.setattr("recipes.programs.train._CALIBRATION_IMAGES", 64)
    page = run_demo(tmp_path / "demo", quick=True)
    assert page == tmp_path / "demo" / "index.html"
    html = page.read_text()
    assert "Held-out photographs" in html
    assert "http://" not in html.split("<body")[0]
    figures = findings_of(tmp_path / "demo")
    drawn = {protocol["arithmetic"] for protocol in figures.protocols.values() if "arithmetic" in protocol}
    bfloat16 = trained_precision(tmp_path / "demo" / "shapes_ar") == "bf16"
    assert drawn == {"bfloat16 autocast; the tokenizer float32" if bfloat16 else "float32"}  # as they were trained
    # Ten steps teach nothing: the captions must miss their target, or the measurement is broken.
    assert figures["captions/seen"].reached is False
    assert figures.value("photos/flower/vae/psnr") > 20  # the linear start alone is worth that much


@pytest.mark.slow
def test_the_demo_reaches_its_targets(tmp_path):
    run_demo(tmp_path / "demo")
    figures = findings_of(tmp_path / "demo")
    judged = {name: figure for name, figure in figures.figures.items() if figure.reached is not None}
    assert sum(name.startswith("control/") for name in judged) > 10
    assert {name: figure.value for name, figure in judged.items() if not figure.reached} == {}
