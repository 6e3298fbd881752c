"""What one run of error-maps does when writing fails, without networks."""

from __future__ import annotations

import errno
from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from nnunet_anomaly.workflow import error_maps


def test_a_full_disk_stops_the_run_at_its_first_cases(tmp_path, monkeypatch):
    mapped = []

    def map_case(job, model, pool, files, target, preparing, place_images):
        mapped.append(target)
        writing = Future()
        writing.set_exception(OSError(errno.ENOSPC, "No space left on device"))
        return [writing]

    def prepared(pool, model, todo, ahead):
        return ((case, files, None) for case, files, _ in todo)

    monkeypatch.setattr(error_maps, "_map_case", map_case)
    monkeypatch.setattr(error_maps, "_prepared_ahead", prepared)
    cases = [(f"case_{index}", [], None) for index in range(50)]
    job = SimpleNamespace(num_processes=1, reconstructions=None)
    with pytest.raises(OSError, match="No space left"):
        error_maps._run(job, None, cases, lambda case, files: tmp_path / case)
    assert len(mapped) == 1
