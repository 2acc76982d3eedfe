"""Tasks of lm-evaluation-harness as a library, and its own command line with our model."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.api.registry import Registry, get_model
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from maskpro_deploy.errors import ConfigError, DownloadError, FormatError, InputError
from maskpro_deploy.evaluate.tasks import Metric, TaskSet, TaskSettings
from maskpro_deploy.lm_eval_model import adapt, register
from maskpro_deploy.targets.models import RunConfig, find_target

PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
NAMES = ("tiny_choice", "tiny_text", "tiny_answer")
RUN = RunConfig(provider="cpu", threads=1)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_all_kinds_of_tasks_give_what_the_harnesss_own_model_gives(
    tiny_checkpoint: Path, tiny_bundle: Path, tiny_tasks: Path
) -> None:
    tasks = TaskSet(TaskSettings(names=NAMES, path=tiny_tasks))
    expected = tasks.run(HFLM(pretrained=str(tiny_checkpoint), device="cpu", dtype="float32", batch_size=2))
    assert {(m.task, m.metric) for m in expected} == {
        ("tiny_choice", "acc"),
        ("tiny_choice", "acc_norm"),
        ("tiny_text", "byte_perplexity"),
        ("tiny_text", "bits_per_byte"),
        ("tiny_answer", "exact_match"),
    }
    for folder in (tiny_checkpoint, tiny_bundle):
        found = tasks.run(adapt(find_target(str(folder)), RUN))
        assert [(m.task, m.metric, m.version, m.documents, m.num_fewshot) for m in found] == [
            (m.task, m.metric, m.version, m.documents, m.num_fewshot) for m in expected
        ]
        assert [m.value for m in found] == pytest.approx([m.value for m in expected], rel=1e-4)
        assert [m.stderr for m in found] == [m.stderr for m in expected]


def test_examples_and_limits_reach_the_harness(tiny_bundle: Path, tiny_tasks: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_tasks, tmp_path / "tasks")
    with (folder / "tiny_choice.yaml").open("a") as f:
        f.write("fewshot_split: test\n")
    lm = adapt(find_target(str(tiny_bundle)), RUN)
    found = TaskSet(TaskSettings(names=("tiny_choice",), path=folder, num_fewshot=1, limit=4)).run(lm)
    assert {(m.documents, m.num_fewshot, m.version) for m in found} == {(4, 1, "3")}
    assert all(m.higher_is_better for m in found)
    assert found[0].label == "acc"


def test_a_figure_names_how_its_answers_were_read() -> None:
    metric = Metric(
        task="t", metric="exact_match", filter="strict-match", value=0.5, stderr=None, higher_is_better=True,
        num_fewshot=0, documents=1, version=None,
    )  # fmt: skip
    assert metric.label == "exact_match (strict-match)"


@pytest.fixture
def no_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The harness looks for its 14,000 own tasks in an empty folder: reading them takes seconds."""
    monkeypatch.setattr("lm_eval.tasks.manager.__file__", str(tmp_path / "own" / "manager.py"))
    (tmp_path / "own").mkdir()


@pytest.mark.usefixtures("no_defaults")
def test_an_unknown_task_is_an_error(tiny_tasks: Path) -> None:
    with pytest.raises(InputError, match=r"there is no task tiny_chioce \(there is: .*tiny_choice"):
        TaskSet(TaskSettings(names=("tiny_chioce",), path=tiny_tasks))


@pytest.mark.usefixtures("no_defaults")
def test_a_task_file_that_cannot_be_parsed_is_named(tiny_tasks: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_tasks, tmp_path / "tasks")
    (folder / "tiny_choice.yaml").write_text("task: [tiny_choice")
    with pytest.raises(FormatError, match=r"tiny_choice\.yaml cannot be parsed"):
        TaskSet(TaskSettings(names=("tiny_choice",), path=folder))


def test_data_that_is_missing_is_an_error(tiny_bundle: Path, tiny_tasks: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_tasks, tmp_path / "tasks")
    task = folder / "tiny_choice.yaml"
    task.write_text(task.read_text().replace("rows.jsonl", "nothing.jsonl"))
    with pytest.raises(DownloadError, match="data of tiny_choice could not be loaded"):
        TaskSet(TaskSettings(names=("tiny_choice",), path=folder)).run(adapt(find_target(str(tiny_bundle)), RUN))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"names": ()}, "--tasks is empty"),
        ({"names": ("a", "")}, "--tasks is empty"),
        ({"names": ("a", "a")}, "twice"),
        ({"names": ("a",), "limit": 0}, "--limit 0"),
        ({"names": ("a",), "num_fewshot": -1}, "--num-fewshot -1"),
    ],
)
def test_settings_out_of_range_name_the_flag(settings: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        TaskSettings(**settings)  # type: ignore[arg-type]


def test_changed_task_files_are_seen(tiny_tasks: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_tasks, tmp_path / "tasks")
    before = TaskSettings(names=("tiny_choice",), path=folder).to_json()
    assert before == TaskSettings(names=("tiny_choice",), path=folder).to_json()
    (folder / "rows.jsonl").write_text("")
    assert before != TaskSettings(names=("tiny_choice",), path=folder).to_json()


@pytest.mark.usefixtures("no_defaults")
def test_the_harness_finds_the_model_by_its_name(tiny_bundle: Path, tiny_tasks: Path) -> None:
    register()
    register()  # twice does no harm
    results = simple_evaluate(
        model="maskpro",
        model_args=f"pretrained={tiny_bundle},provider=cpu,threads=1",
        batch_size=3,
        device="cpu",
        tasks=["tiny_choice"],
        task_manager=TaskManager(include_path=str(tiny_tasks)),
    )
    theirs = results["results"]["tiny_choice"]
    found = TaskSet(TaskSettings(names=("tiny_choice",), path=tiny_tasks)).run(adapt(find_target(str(tiny_bundle)), RUN))
    assert {m.metric: m.value for m in found} == {"acc": theirs["acc,none"], "acc_norm": theirs["acc_norm,none"]}


def test_the_model_is_declared_as_a_plug_in_of_the_harness(tiny_bundle: Path) -> None:
    group = "lm_eval.models"
    (declared,) = tomllib.loads(PYPROJECT.read_text())["project"]["entry-points"][group].items()
    assert declared[0] == "maskpro"
    registry: Registry[type[LM]] = Registry("model", base_cls=LM)  # the harness's own, which takes entry points
    registry.register(declared[0], target=EntryPoint(*declared, group))
    model = registry.get("maskpro")
    assert declared[1] == f"{model.__module__}:{model.__name__}"  # what the harness knows the same class by
    register()
    assert get_model("maskpro") is model
    lm = model.create_from_arg_string(f"pretrained={tiny_bundle},provider=cpu,threads=1", {"batch_size": 1})
    assert isinstance(lm, LM)


def test_the_harnesss_own_command_line_answers() -> None:
    command = [sys.executable, "-m", "maskpro_deploy.lm_eval_model", "run", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "--model_args" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "lacks pretrained"),
        ({"pretrained": "x", "shape": 3}, "does not know shape"),
        ({"pretrained": "x", "batch_size": "auto"}, "not a number"),
    ],
)
def test_model_arguments_that_mean_nothing_are_errors(arguments: dict[str, object], said: str) -> None:
    register()
    with pytest.raises(ConfigError, match=said):
        get_model("maskpro").create_from_arg_obj(arguments, {"batch_size": 1, "device": None})
