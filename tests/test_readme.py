"""Runs what README and docs tell people to type, in their order, and prints their numbers again."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import write_image

from aivsreal.benchmarks.accuracy import brief_table, main, results_of, table
from aivsreal.benchmarks.documents import commands, documents, output_of, rendered
from aivsreal.runtime.errors import BundleError, ResultsError

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in documents(ROOT)}
README = DOCUMENTS["README.md"]
SETUP = ("python3 -m venv .venv && .venv/bin/pip install '.[cpu]' && .venv/bin/aivsreal-scan photos/", "make check")
# A README's training takes hours; the same command is run with a smaller network for one epoch.
SMALL = " --arch levit_128s --size 64 --epochs 1 --batch-size 8 --workers 0"


def _blocks(language: str, name: str = "README.md") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOCUMENTS[name], flags=re.S | re.M)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """What the documents' commands find: `photos/` and `data/`."""
    folder = tmp_path_factory.mktemp("readme")
    for index in range(3):
        write_image(folder / "photos" / f"{index}.jpg", index, size=(320, 240))
    (folder / "data").symlink_to(tiny_data)
    return folder


def test_ci_runs_the_two_setup_commands() -> None:
    blocks = [block.strip() for block in _blocks("sh")]
    assert tuple(blocks[:2]) == SETUP
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert f"\n{SETUP[1]}\n" in ci
    parts = SETUP[0].replace(".venv", '"$scratch/venv"').replace('"$scratch/venv"/bin/pip', '"$scratch/venv/bin/pip"')
    for part in parts.split(" && ")[:2]:
        assert part.split(" install")[0] in ci
    assert "install --disable-pip-version-check --quiet '.[cpu]'" in ci


def test_the_commands_do_what_the_documents_say(folder: Path) -> None:
    blocks = [block for name in DOCUMENTS for block in _blocks("sh", name)][len(SETUP) :]
    lines = [line for block in blocks for line in block.splitlines() if line]
    assert {line.split()[0] for line in lines} >= {
        f"aivsreal-{name}" for name in ("scan", "train", "export", "evaluate", "calibrate")
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "XDG_DATA_HOME": str(folder / "home")}
    for line in lines:
        command = line + SMALL if line.startswith("aivsreal-train") else line
        result = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, env=environment)
        assert result.returncode == 0, f"{line}\n{result.stdout}\n{result.stderr}"


@pytest.mark.parametrize("name", ["README.md", "docs/scan.md"])
def test_the_library_example_runs(folder: Path, name: str) -> None:
    (example,) = _blocks("python", name)
    result = subprocess.run([sys.executable, "-c", example], cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout


def test_every_option_in_the_documents_exists() -> None:
    from importlib.metadata import entry_points

    from aivsreal.benchmarks import accuracy, sizes
    from aivsreal.benchmarks.cli import main as bench
    from aivsreal.benchmarks.studies import ablation, sources
    from aivsreal.train import pack

    points = [point.load() for point in entry_points(group="console_scripts") if point.name.startswith("aivsreal-")]
    points += [accuracy.main, sizes.main, ablation.main, sources.main, pack.main]
    known = {
        option
        for one in [*points, *(bench.get_command(None, name) for name in bench.list_commands(None))]
        for parameter in one.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    } | {"--help"}
    used = {option for text in DOCUMENTS.values() for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text)}
    # Of other programs.
    others = {"--system-site-packages", "--nproc-per-node", "--no-deps", "--tmux"}
    assert used <= known | others, used - known


@pytest.mark.parametrize("name", DOCUMENTS)
def test_what_is_made_by_a_command_is_what_it_prints(name: str) -> None:
    text = DOCUMENTS[name]
    assert text.count("\n<!-- made by: ") == text.count("\n<!-- made -->") == len(commands(text))
    made = rendered(text, lambda line: output_of(line, ROOT))
    assert made == text, f"{name} is not what its commands print: run python -m aivsreal.benchmarks.documents"


def test_other_numbers_would_be_noticed() -> None:
    text = "a\n<!-- made by: python -m x -->\n1\n<!-- made -->\nb\n"
    assert rendered(text, lambda line: f"{line} 2\n") == text.replace("\n1\n", "\npython -m x 2\n")
    with pytest.raises(ResultsError):
        output_of("python -m aivsreal.benchmarks.report no-such-file", ROOT)


def _anchors(text: str) -> set[str]:
    """As GitHub makes them of headings."""
    titles = re.findall(r"^#+ (.+)$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_documents_links_lead_somewhere() -> None:
    for name, text in {**DOCUMENTS, "CONTRIBUTING.md": (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")}.items():
        for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
            file, _, anchor = target.partition("#")
            path = ROOT / name if not file else (ROOT / name).parent / file
            assert path.exists(), f"{name}: {target}"
            if anchor:
                assert anchor in _anchors(path.read_text(encoding="utf-8")), f"{name}: {target}"


def test_the_tables_of_accuracy_hold_what_was_recorded_and_say_what_was_not(tmp_path: Path) -> None:
    results = results_of(ROOT / "runtime" / "models" / "levit192")
    order = ["val_seen", "val_unseen", "test"]
    assert [order.index(result["split"]) for result in results] == sorted(
        order.index(result["split"]) for result in results
    )
    (clean,) = (result for result in results if (result["split"], result["tier"]) == ("test", "clean"))
    (row,) = (line for line in table(results).splitlines() if line.startswith("| test | clean"))
    assert f"{clean['measures']['auc']['value']:.3f} [" in row
    assert results_of(tmp_path) == []
    mine = tmp_path / "mine" / "bundle"
    mine.mkdir(parents=True)
    told = {"metrics": {"evaluation": {"results": [{**clean, "split": "mine"}, clean]}}}
    (mine / "evaluation.json").write_text(json.dumps(told))
    assert [result["split"] for result in results_of(mine)] == ["test", "mine"]
    shutil.copytree(mine, tmp_path / "other" / "bundle")
    both = CliRunner().invoke(main, ["--brief", str(mine), str(tmp_path / "other" / "bundle")]).stdout
    assert both.count(": AUC") == 2, "folders of one name are two models"
    brief = brief_table({"one": results, "two": []}).splitlines()[2:]
    assert len(brief) == 3
    assert all(line.count("not measured") >= 3 for line in brief)
    (tmp_path / "evaluation.json").write_text(json.dumps({"metrics": 1}))
    with pytest.raises(BundleError, match=re.escape("evaluation.json")):
        results_of(tmp_path)


def test_ci_runs_on_the_oldest_and_the_newest_python() -> None:
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert 'python: ["3.10", "3.13"]' in workflow
    assert "run: .ci/run" in workflow
    assert "3.10 to 3.13" in README
