import os
import subprocess
import sys

import pytest

from moegraft.errors import RunError
from moegraft.evals.lock import writer_lock

HOLD = """
import sys
from pathlib import Path
from moegraft.evals.lock import writer_lock
with writer_lock(Path(sys.argv[1]), (1, 2)):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_writer_of_one_shard_is_an_error_that_names_the_first(tmp_path, holder):
    with (
        pytest.raises(RunError, match=rf"process {holder.pid} on .* already writing as shard 1/2"),
        writer_lock(tmp_path, (1, 2)),
    ):
        pass


def test_shards_of_one_number_write_side_by_side_and_other_numbers_are_refused(tmp_path, holder):
    with writer_lock(tmp_path, (2, 2)):
        pass
    for shard in ((1, 1), (3, 3)):
        with pytest.raises(RunError, match="same number of shards"), writer_lock(tmp_path, shard):
            pass


def test_a_killed_writer_leaves_no_lock(tmp_path, holder):
    holder.kill()
    holder.wait()
    with writer_lock(tmp_path, (1, 2)):
        assert str(os.getpid()) in (tmp_path / "state/locks/1-of-2").read_text()
