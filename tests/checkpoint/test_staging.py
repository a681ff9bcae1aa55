import errno
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import get_context
from pathlib import Path

import pytest

from moegraft.checkpoint.staging import sole_writer, staged_output
from moegraft.errors import CheckpointError, OutputError, RunError


def names(folder):
    return sorted(path.name for path in folder.rglob("*"))


def refused(match, out, *args, **how):
    with pytest.raises(OutputError, match=match) as caught, staged_output(out, *args, **how):
        pytest.fail("the block must not run")
    assert "\n" not in str(caught.value)


def test_a_finished_folder_has_its_name_only_at_the_end(tmp_path):
    out = tmp_path / "new" / "out"
    with staged_output(out) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "x").write_text("1")
        assert not out.exists()
        assert folder.parent == out.parent
    assert names(tmp_path) == ["new", "out", "sub", "x"]
    assert (out / "sub" / "x").read_text() == "1"


def test_an_empty_folder_may_be_the_output(tmp_path):
    (tmp_path / "out").mkdir()
    with staged_output(tmp_path / "out") as folder:
        (folder / "x").write_text("1")
    assert names(tmp_path) == ["out", "x"]


def test_a_link_to_an_empty_folder_stays_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "real")
    with staged_output(tmp_path / "out") as folder:
        (folder / "x").write_text("1")
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "real" / "x").read_text() == "1"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, CheckpointError])
def test_an_exception_leaves_nothing_behind(error, tmp_path):
    with pytest.raises(error), staged_output(tmp_path / "a" / "b" / "out") as folder:
        (folder / "x").write_text("1")
        raise error
    assert names(tmp_path) == []


def test_an_output_that_is_not_empty_is_refused_and_untouched(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("1")
    refused("exists and is not empty; name another folder", tmp_path / "out")
    assert names(tmp_path) == ["mine", "out"]


def test_a_file_in_the_place_of_the_output_is_refused(tmp_path):
    (tmp_path / "out").write_text("1")
    refused("exists and is no folder", tmp_path / "out")
    refused("cannot be written", tmp_path / "out" / "below")
    (tmp_path / "dangling").symlink_to(tmp_path / "out" / "nowhere")
    refused("cannot be written", tmp_path / "dangling")


def test_an_output_that_is_or_touches_an_input_is_refused(tmp_path):
    model = tmp_path / "models" / "a"
    model.mkdir(parents=True)
    (tmp_path / "link").symlink_to(model)
    refused("the output is the input", model, [model])
    refused("the output is the input", tmp_path / "link", [model])
    refused("the output is the input", model, [tmp_path / "link"])
    refused("the output lies inside the input", model / "out", [model])
    refused("the output lies around the input", tmp_path / "models", [model])
    assert names(tmp_path) == ["a", "link", "models"]


def test_too_little_space_is_refused_before_anything_is_written(tmp_path):
    refused(
        r"needs 2\.000 GB, but 1\.500 GB are free; nothing written",
        tmp_path / "new" / "out",
        needed_bytes=2_000_000_000,
        free_bytes=lambda _: 1_500_000_000,
    )
    assert names(tmp_path) == []
    refused("are free; nothing written", tmp_path / "out", needed_bytes=1 << 60)


def test_a_parent_that_cannot_be_written_is_one_line(tmp_path):
    refused("cannot be written", Path("/proc/none/out"))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_disk_that_fills_up_is_one_line_and_leaves_nothing(code, tmp_path):
    with (
        pytest.raises(OutputError, match="the disk is full"),
        staged_output(tmp_path / "out") as folder,
    ):
        (folder / "x").write_text("1")
        raise OSError(code, os.strerror(code))
    assert names(tmp_path) == []


def test_a_file_size_limit_in_the_middle_leaves_nothing(tmp_path):
    code = (
        "import resource, signal, sys; from moegraft.checkpoint.staging import staged_output\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "with staged_output(sys.argv[1]) as folder: (folder / 'x').write_bytes(bytes(5000))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "OutputError" in done.stderr.splitlines()[-1]
    assert "the disk is full" in done.stderr
    assert names(tmp_path) == []


def test_a_rival_that_finishes_first_keeps_its_output(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(OutputError, match="another process"), staged_output(out) as folder:
        (folder / "x").write_text("mine")
        out.mkdir()
        (out / "x").write_text("theirs")
    assert names(tmp_path) == ["out", "x"]
    assert (out / "x").read_text() == "theirs"


def write_slowly(out, ready):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored under `nohup` and some CIs
    with staged_output(out) as folder:
        (folder / "config.json").write_text("{}")
        ready.set()
        time.sleep(60)


@pytest.fixture
def writer(tmp_path):
    """A process in the middle of writing `out`."""
    context = get_context("spawn")
    ready = context.Event()
    process = context.Process(target=write_slowly, args=(tmp_path / "out", ready))
    process.start()
    assert ready.wait(60)
    yield process
    process.kill()
    process.join()


def test_kill_9_leaves_no_output_and_the_next_run_cleans_up(writer, tmp_path):
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    assert not (tmp_path / "out").exists()
    assert (tmp_path / f".out.partial-{writer.pid}").exists()
    with staged_output(tmp_path / "out") as folder:
        (folder / "x").write_text("1")
    assert names(tmp_path) == ["out", "x"]


def test_the_folder_of_a_living_process_is_left_alone(writer, tmp_path):
    with staged_output(tmp_path / "out") as folder:
        (folder / "x").write_text("1")
    assert (tmp_path / f".out.partial-{writer.pid}" / "config.json").exists()


def test_ctrl_c_in_another_process_leaves_nothing(writer, tmp_path):
    os.kill(writer.pid, signal.SIGINT)
    writer.join()
    assert names(tmp_path) == []


def test_folders_of_other_outputs_are_left_alone(tmp_path):
    others = [".out.partial-x", ".other.partial-999999999", ".out.partial-"]
    for name in others:
        (tmp_path / name).mkdir()
    with staged_output(tmp_path / "out"):
        pass
    assert names(tmp_path) == sorted([*others, "out"])


def test_two_threads_of_one_process_do_not_share_a_folder(tmp_path):
    with staged_output(tmp_path / "out") as folder:
        (folder / "x").write_text("mine")
        failures = []

        def rival():
            try:
                with staged_output(tmp_path / "out"):
                    pass
            except OutputError as error:
                failures.append(str(error))

        thread = threading.Thread(target=rival)
        thread.start()
        thread.join()
        assert "another process" in failures[0]
        assert (folder / "x").exists()
    assert (tmp_path / "out" / "x").read_text() == "mine"


def small_file_system(tmp_path):
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(mount)]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip("mounting a small file system takes root")
    return mount


def test_a_full_disk_in_the_middle_leaves_nothing(tmp_path):
    mount = small_file_system(tmp_path)
    try:
        with (
            pytest.raises(OutputError, match="the disk is full"),
            staged_output(mount / "out") as folder,
        ):
            (folder / "x").write_bytes(bytes(1 << 20))
        assert names(mount) == []
        refused("is a mount point; name a folder inside it", mount)
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_space_is_asked_of_the_file_system_that_is_written(tmp_path):
    mount = small_file_system(tmp_path)
    try:
        refused("are free; nothing written", mount / "a" / "out", needed_bytes=1 << 20)
        assert names(mount) == []
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_a_folder_has_one_writer_at_a_time(tmp_path):
    with sole_writer(tmp_path):
        code = "from moegraft.checkpoint.staging import sole_writer; import pathlib, sys\n"
        code += "sole_writer(pathlib.Path(sys.argv[1])).__enter__()"
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], check=False, capture_output=True, text=True
        )
        assert "RunError" in done.stderr and "another process is working in it" in done.stderr
        with pytest.raises(RunError, match="wait for it, or name another folder"):
            sole_writer(tmp_path).__enter__()
    with sole_writer(tmp_path):
        assert names(tmp_path) == []
