"""The work folder: whose it is, what survives a kill, and that it never holds half a state."""

import errno
import json
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.errors import RecipeError
from onnxopt.workdir import WorkDir, WorkDirError

KEY = {"model": "a", "recipe": "b"}


_HELD: dict[Path, WorkDir] = {}


def work(folder: Path, *, resume: bool = False, key: dict[str, str] | None = None) -> WorkDir:
    """The folder's next run; the one before it has ended."""
    if folder in _HELD:
        _HELD.pop(folder).close()
    _HELD[folder] = WorkDir(folder, KEY if key is None else key, resume=resume)
    return _HELD[folder]


def leave(one: WorkDir, index: int) -> Path:
    """A candidate as a step leaves it, with external data."""
    path = one.candidate(index)
    path.write_bytes(b"model %d" % index)
    path.with_name(f"{path.name}.data").write_bytes(b"data")
    return path


def test_a_new_folder_is_made_and_removed(tmp_path: Path) -> None:
    one = work(tmp_path / "new" / "folder")
    assert one.last_state() is None
    assert one.done == []
    one.remove()
    assert not (tmp_path / "new" / "folder").exists()


def test_what_others_put_there_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    for resume in (False, True):
        with pytest.raises(RecipeError, match="holds files of others"):
            work(tmp_path, resume=resume)
    assert (tmp_path / "thesis.txt").read_text() == "precious"
    (tmp_path / "file").touch()
    with pytest.raises(RecipeError, match="cannot use work folder"):
        work(tmp_path / "file")


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_in_use_is_refused_and_left_alone(tmp_path: Path, resume: bool) -> None:
    one = WorkDir(tmp_path, KEY, resume=False)
    one.commit({"name": "first"}, leave(one, 0))
    with pytest.raises(
        RecipeError, match=rf"^another run \(pid {os.getpid()}\) uses the work folder .*{tmp_path.name};"
    ):
        WorkDir(tmp_path, KEY, resume=resume)
    assert one.candidate(0).is_file()
    one.close()
    assert len(WorkDir(tmp_path, KEY, resume=True).done) == 1


def test_a_refused_run_leaves_no_lock(tmp_path: Path) -> None:
    one = WorkDir(tmp_path, KEY, resume=False)
    one.commit({"name": "first"}, leave(one, 0))
    one.close()
    with pytest.raises(RecipeError, match="cannot resume: model differ") as refused:
        WorkDir(tmp_path, KEY | {"model": "b"}, resume=True)
    assert WorkDir(tmp_path, KEY, resume=True).last_state() is not None
    del refused


def test_what_could_not_be_remembered_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = work(tmp_path)
    one.commit({"name": "first"}, leave(one, 0))
    with monkeypatch.context() as patch:
        patch.setattr("json.dump", full)
        with pytest.raises(WorkDirError, match=r"cannot write to the work folder .* No space left"):
            one.commit({"name": "second"}, leave(one, 1))
    assert [record["name"] for record in one.done] == ["first"]
    assert one.last_state() == one.candidate(0)


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_resume_finds_what_was_committed(tmp_path: Path) -> None:
    one = work(tmp_path)
    first = leave(one, 0)
    one.commit({"name": "first"}, first)
    one.commit({"name": "idle"}, None)
    again = work(tmp_path, resume=True)
    assert [record["name"] for record in again.done] == ["first", "idle"]
    assert again.last_state() == first
    assert work(tmp_path).last_state() is None
    assert not first.exists()


def test_only_the_last_state_is_kept(tmp_path: Path) -> None:
    one = work(tmp_path)
    for index in range(3):
        one.commit({"name": str(index)}, leave(one, index))
    assert sorted(p.name for p in tmp_path.glob("0*")) == ["002.onnx", "002.onnx.data"]


def test_a_candidate_that_was_not_committed_does_no_harm(tmp_path: Path) -> None:
    one = work(tmp_path)
    first = leave(one, 0)
    one.commit({"name": "first"}, first)
    leave(one, 1)
    (tmp_path / ".state.json.tmp").write_text('{"key": {"mo')
    again = work(tmp_path, resume=True)
    assert again.last_state() == first
    again.commit({"name": "second"}, leave(again, 1))
    assert work(tmp_path, resume=True).last_state() == one.candidate(1)


def test_discard_takes_the_candidate_and_what_was_stored_for_it(tmp_path: Path) -> None:
    one = work(tmp_path)
    one.commit({"name": "first"}, leave(one, 0))
    one.store(np.zeros(3))
    one.discard(leave(one, 1))
    assert sorted(p.name for p in tmp_path.glob("[0s]*")) == ["000.onnx", "000.onnx.data", "state.json"]


def test_state_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = work(tmp_path)
    one.commit({"name": "first"}, leave(one, 0))

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", fail)
        with pytest.raises(KeyboardInterrupt):
            one.commit({"name": "second"}, leave(one, 1))
    again = work(tmp_path, resume=True)
    assert [record["name"] for record in again.done] == ["first"]
    last = again.last_state()
    assert last is not None
    assert last.read_bytes() == b"model 0"


@pytest.mark.parametrize("name", ["model", "recipe"])
def test_another_run_s_folder_is_not_resumed(tmp_path: Path, name: str) -> None:
    one = work(tmp_path)
    one.commit({"name": "first"}, leave(one, 0))
    with pytest.raises(RecipeError, match=f"cannot resume: {name} differ"):
        work(tmp_path, resume=True, key=KEY | {name: "other"})
    assert work(tmp_path, resume=True).last_state() is not None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": {}}', '{"key": 1, "done": []}'])
def test_a_state_that_cannot_be_read_is_said(tmp_path: Path, text: str) -> None:
    work(tmp_path)
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(RecipeError, match=r"cannot resume: .* cannot be read"):
        work(tmp_path, resume=True)


def test_a_state_whose_model_is_gone_is_said(tmp_path: Path) -> None:
    one = work(tmp_path)
    one.commit({"name": "first"}, leave(one, 0))
    one.candidate(0).unlink()
    with pytest.raises(RecipeError, match="is missing"):
        work(tmp_path, resume=True)


def test_nothing_to_resume_is_a_start(tmp_path: Path) -> None:
    assert work(tmp_path, resume=True).done == []
    assert work(tmp_path / "empty", resume=True).done == []


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.arange(6, dtype=np.float32).reshape(2, 3), None),
        (np.arange(6, dtype=np.float32).reshape(2, 3).T, None),
        (np.array(3.0), None),
        (np.zeros((0, 4), np.int64), None),
        (np.arange(6).astype(ml_dtypes.bfloat16), None),
        (np.array([True, False]), None),
        (np.arange(-8, 7, dtype=np.int8).reshape(3, 5), ir.DataType.INT4),
        (np.arange(4, dtype=np.uint8), ir.DataType.UINT2),
    ],
)
def test_stored_arrays_come_back(tmp_path: Path, array: np.ndarray, dtype: ir.DataType | None) -> None:
    tensor = work(tmp_path).store(array, dtype)
    assert tensor.dtype == (dtype or ir.DataType.from_numpy(array.dtype))
    assert tuple(tensor.shape) == array.shape
    np.testing.assert_array_equal(tensor.numpy().astype(array.dtype), array)


def test_stored_arrays_go_with_the_commit(tmp_path: Path) -> None:
    one = work(tmp_path)
    one.store(np.zeros(3))
    assert list(tmp_path.glob("stored-*"))
    one.commit({"name": "first"}, leave(one, 0))
    assert not list(tmp_path.glob("stored-*"))
    assert json.loads((tmp_path / "state.json").read_text())["key"] == KEY
