"""Finding tasks, and what evaluation registers and imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.evaluation.local import check_local_task
from harness.evaluation.tasks import _unknown_builtin, builtin_folder, task_manager


def test_importing_evaluation_loads_no_engine() -> None:
    code = (
        "import sys, harness.evaluation, harness.evaluation.registry, harness.evaluation.recompute\n"
        "import harness.evaluation.validate, harness.evaluation.judge, harness.evaluation.local\n"
        "assert not {'lmms_eval', 'torch', 'transformers', 'datasets'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_both_models_are_found_by_lmms_eval() -> None:
    from lmms_eval.models import get_model

    from harness.evaluation.adapter import SieveLlavaOv
    from harness.evaluation.replay import SieveReplay

    assert get_model("sieve_llava_ov") is SieveLlavaOv
    assert get_model("sieve_replay") is SieveReplay


def test_corrected_mmt_has_no_placeholder_in_its_text(tmp_path: Path) -> None:
    from lmms_eval.tasks import TaskManager
    from lmms_eval.utils import load_yaml_config

    manager = task_manager("sieve_mmt_val", "", tmp_path)
    assert manager.all_tasks == ["sieve_mmt_val"]
    config = manager._get_config("sieve_mmt_val")
    original = load_yaml_config(str(builtin_folder() / "mmt" / "mmt_val.yaml"), mode="full")
    doc = {"question": "Which?", "A": "red", "B": "green"}
    tail = {"pre_prompt": "", "post_prompt": "\nAnswer."}
    assert config["doc_to_text"](doc, tail) == "Which?\nA: red\nB: green\nAnswer."
    assert original["doc_to_text"](doc, tail) == "Question: <image>\n" + config["doc_to_text"](doc, tail)
    same = set(config) - {"task", "doc_to_text"}
    assert {k: str(config[k]).split(" at ")[0] for k in same} == {
        k: str(original[k]).split(" at ")[0] for k in same
    }
    assert isinstance(manager, TaskManager)


def test_unknown_builtin_names_the_closest() -> None:
    error = _unknown_builtin("mmstr", ["mme", "mmstar", "ai2d"])
    assert isinstance(error, HarnessError)
    assert "Closest: mmstar" in str(error)


def test_a_local_folder_hides_the_builtin_of_the_same_name(tmp_path: Path) -> None:
    (tmp_path / "mme.yaml").write_text("task: mme\ndataset_path: parquet\n")
    assert task_manager("mme", str(tmp_path), tmp_path / "scratch").all_tasks == ["mme"]
    with pytest.raises(HarnessError, match=r"task in .* 'ai2d' is not known"):
        task_manager("ai2d", str(tmp_path), tmp_path / "scratch")


def test_missing_data_is_noticed_before_anything_runs(tmp_path: Path) -> None:
    common = "dataset_path: parquet\ndataset_kwargs: {data_files: {test: part.parquet}}\n"
    (tmp_path / "_common").write_text(common)
    (tmp_path / "a.yaml").write_text("include: _common\ntask: a\ndoc_to_text: !function utils.text\n")
    (tmp_path / "deep").mkdir()
    b = "task: b\ndataset_path: json\ndataset_kwargs: {data_files: {test: ['*.json', b.json]}}\n"
    (tmp_path / "deep" / "b.yaml").write_text(b)
    (tmp_path / "both.yaml").write_text("group: both\ntask: [a, b]\n")
    for name in ("a", "both"):
        with pytest.raises(HarnessError, match=r"task a needs .*part\.parquet, which is not there"):
            check_local_task(tmp_path, name)
    (tmp_path / "part.parquet").touch()
    check_local_task(tmp_path, "a")
    with pytest.raises(HarnessError, match=r"task b needs .*deep/b\.json"):
        check_local_task(tmp_path, "both")
    (tmp_path / "deep" / "b.json").touch()
    check_local_task(tmp_path, "both")


def test_a_wrong_task_folder_is_explained(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="there is no task folder"):
        check_local_task(tmp_path / "nowhere", "a")
    (tmp_path / "a.yaml").write_text("task: odd_one\ndataset_path: parquet\n")
    with pytest.raises(HarnessError, match="Did you mean 'odd_one'"):
        check_local_task(tmp_path, "odd_on")
    (tmp_path / "a.yaml").write_text("task: [odd\n")
    with pytest.raises(HarnessError, match="not valid YAML"):
        check_local_task(tmp_path, "odd")
    (tmp_path / "a.yaml").write_text("task: odd\ninclude: nothing_yaml\n")
    with pytest.raises(HarnessError, match="includes nothing_yaml"):
        check_local_task(tmp_path, "odd")
