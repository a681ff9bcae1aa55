import shutil
from dataclasses import replace

import pytest

from moegraft.bar.adapt import adapt
from moegraft.bar.manifest import read_manifest, write_manifest
from moegraft.bar.stages import AdaptRecipe, StageRecipe
from moegraft.errors import OutputError, RecipeError, RunError
from tiny_bar import build_branch_with_chats

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """An anchor, its branch and chats (read only)."""
    return build_branch_with_chats(tmp_path_factory.mktemp("run"))


def _recipe(root, branch, steps=1, device="cpu"):
    stage = StageRecipe("sft", (str(root / "chat.jsonl"),), steps=steps, batch=2, length=32)
    return AdaptRecipe(str(branch), (stage,), device=device)


def test_a_run_is_of_the_branch_that_stands_there_now(root, tmp_path):
    start = tmp_path / "start"
    shutil.copytree(root / "branch", start)
    adapt(_recipe(root, start), tmp_path / "run")
    write_manifest(start, replace(read_manifest(start), domain="code"))
    with pytest.raises(RunError, match="was trained from another branch than the one at"):
        adapt(_recipe(root, start), tmp_path / "run")


def test_a_run_that_cannot_be_written_is_refused_before_the_training(root):
    seen = []
    inside = root / "branch" / "run"
    with pytest.raises(OutputError, match="lies inside the input"):
        adapt(_recipe(root, root / "branch"), inside, on_step=lambda *now: seen.append(now))
    with pytest.raises(RecipeError, match="device 'gpu': expected auto, cpu, cuda"):
        adapt(_recipe(root, root / "branch", device="gpu"), inside)
    assert not seen and not inside.exists()


def test_two_runs_in_one_folder_at_once_are_refused(root, tmp_path):
    recipe, seen = _recipe(root, root / "branch", steps=2), []

    def twice(*now):
        seen.append(now)
        with pytest.raises(RunError, match="another process is working in it; wait for it"):
            adapt(recipe, tmp_path / "run")

    assert adapt(recipe, tmp_path / "run", on_step=twice).stages[-1]["devices"] == 1
    assert seen == [("sft", 1, 2), ("sft", 2, 2)]
