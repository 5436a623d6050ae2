"""A deployment leaves no file: not in the user's home, for temporary files, or in shared memory."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.local import test_local_target as text
from tests.local import test_vision_target as images

pytestmark = [pytest.mark.slow, pytest.mark.alone]


@pytest.mark.parametrize(
    ("measure", "configuration"),
    [
        pytest.param(text.measure, text.SPLIT_KV, id="mockers"),
        pytest.param(images.measure, images.CACHED, id="vision worker"),
    ],
)
def test_nothing_is_left_behind(measure, configuration, tmp_path, monkeypatch):
    home, temporary = tmp_path / "home", tmp_path / "temporary"
    home.mkdir()
    temporary.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("XDG_CACHE_HOME", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    shared = set(Path("/dev/shm").iterdir())
    copies = []
    watch = text.Watch(lambda: copies.extend(temporary.glob("*/home/.cache/dynamo/mdc/*/*")))
    measure(configuration, tmp_path / "results", watch=watch)
    assert copies, "the frontend keeps its copies elsewhere"
    assert not list(home.rglob("*"))
    assert not list(temporary.rglob("*"))
    assert set(Path("/dev/shm").iterdir()) <= shared
