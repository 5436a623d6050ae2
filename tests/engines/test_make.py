"""Making a profile, with a made-up source in place of aiconfigurator."""

import numpy as np
import pytest

from pytest_dynamo_bench.engines import make
from pytest_dynamo_bench.engines.catalog import ProfileSpec


def source(decode=lambda batch, context: 5 + 0.1 * batch + 1e-6 * batch * context):
    return make.Source(
        prefill_ms=lambda new, prefix: 10 + 0.05 * new + 1e-6 * new * (new + 2 * prefix),
        decode_ms=decode,
        per_operation={"prefill": {"silicon": 1}, "decode": {"silicon": 1}},
        version="0",
        data_version="0",
        kv_capacity_tokens=1,
    )


def test_tables_give_the_source_back():
    tables, changed = make.tables_from(source())
    assert changed["decode"]["changed"] == 0
    error = make.interpolation_error(tables, source())
    assert error["prefill_largest_percent"] < 1
    assert error["decode_largest_percent"] < 8


def test_an_outlier_is_pooled_with_its_neighbours_and_reported():
    bumpy = source(lambda batch, context: 9.0 if batch == 3 else 5 + 0.1 * batch)
    tables, changed = make.tables_from(bumpy)
    assert changed["decode"]["changed"] > 0 and changed["decode"]["largest_change_percent"] > 10
    assert (np.diff(tables.decode_itl, axis=0) >= -1e-12).all()


def test_rising_falls_along_neither_axis_and_leaves_what_rises():
    random = np.random.default_rng(1)
    values = make.rising(random.uniform(1, 2, (12, 9)))
    assert (np.diff(values, axis=0) >= -1e-12).all() and (np.diff(values, axis=1) >= -1e-12).all()
    already = np.add.outer(np.arange(5.0), np.arange(4.0))
    assert (make.rising(already) == already).all()


def test_without_aiconfigurator_the_error_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "aiconfigurator_core", None)
    arguments = ["--model", "a/b", "--gpu", "H200", "--output", str(tmp_path)]
    assert make.main(arguments) == 1
    assert "pip install aiconfigurator-core" in capsys.readouterr().err


def test_a_wrong_selection_is_a_usage_error(capsys):
    with pytest.raises(SystemExit):
        make.main(["--only", "no-such-model"])
    assert "no-such-model" in capsys.readouterr().err


def test_names_say_the_deployment():
    assert ProfileSpec("a/M", "H200", "vllm", tp=2).name == "M--H200-vllm-tp2"
    dep = ProfileSpec("a/M", "GB200", "trtllm", attention_dp=8, moe_ep=8, draft_tokens=3)
    assert dep.name == "M--GB200-trtllm-tp1-dp8-ep8-draft3" and dep.moe_tp == 1
    assert ProfileSpec("a/M", "GB200", "trtllm", tp=8, moe_ep=2).moe_tp == 4
