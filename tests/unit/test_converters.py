"""Which converter an object takes; nothing is imported to find out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from sklearn.linear_model import LinearRegression

from modelcast.errors import MissingExtraError, SourceError, UsageError
from modelcast.publisher import examples
from modelcast.publisher.convert import converters, lightgbm, sklearn, torch, xgboost
from modelcast.publisher.sources import load


def of(package: str, name: str, **members: object) -> object:
    """An instance of a class that says it comes from a package."""
    base = type(name, (), {"__module__": f"{package}.somewhere"})
    return type("Own", (base,), {"__module__": "application", **members})()


def test_the_converter_is_picked_by_where_a_type_comes_from() -> None:
    assert converters.pick(of("torch", "Module")) is torch
    assert converters.pick(of("torch", "ExportedProgram")) is torch
    assert converters.pick(of("xgboost", "Booster")) is xgboost
    assert converters.pick(of("lightgbm", "Booster")) is lightgbm
    assert converters.pick(LinearRegression()) is sklearn
    assert converters.pick(of("xgboost", "XGBModel", fit=print, predict=print)) is sklearn
    for nothing in (of("torch", "Tensor"), of("torchlike", "Module"), LinearRegression, object(), None, 3, [1.0]):
        assert not converters.recognises(nothing)


def test_an_object_without_converter_is_named() -> None:
    with pytest.raises(SourceError, match="type dict is nothing that can be converted") as caught:
        converters.convert({}, examples.read({"x": [1.0]}), None)
    assert "PyTorch module" in str(caught.value.hint)


def test_no_framework_is_imported_before_an_object_of_it_comes() -> None:
    script = (
        "import sys\nfrom modelcast.publisher.convert import converters\n"
        "converters.recognises(object())\n"
        "print(sorted({'sklearn', 'skl2onnx', 'xgboost', 'lightgbm', 'onnxmltools', 'torch'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", ["m.pt", "m.pth"])
def test_a_pickled_module_is_refused_unless_it_is_trusted(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"a pickle")
    with pytest.raises(UsageError, match="runs whatever code is in it") as caught:
        load(tmp_path / name, print)
    assert "--trust-pickle" in str(caught.value.hint)


def test_reading_a_program_without_pytorch_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "m.pt2").write_bytes(b"a program")
    with pytest.raises(MissingExtraError, match="torch, which is not installed") as caught:
        load(tmp_path / "m.pt2", print)
    assert "pip install 'modelcast[torch]'" in str(caught.value.hint)
