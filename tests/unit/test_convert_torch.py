"""PyTorch: modules are exported with a batch of any size, run in the child process and compared with themselves."""

from __future__ import annotations

import contextlib
import pickle
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest

from modelcast import golden
from modelcast.errors import BindingError, ConversionError, SourceError, StructureError, UsageError
from modelcast.publisher.convert import converters
from modelcast.publisher.convert import torch as torch_converter
from modelcast.publisher.prepare import PreparedModel, prepare
from modelcast.publisher.sources import load

torch = pytest.importorskip("torch", reason="PyTorch, gigabytes large, is not installed here")
pytest.importorskip("onnxscript", reason="torch.onnx takes onnxscript, which is not installed here")
nn = torch.nn

RANDOM = np.random.default_rng(3)
ROWS = 300
NUMBERS = {"amount": RANDOM.normal(size=ROWS), "age": RANDOM.integers(1, 90, ROWS), "rate": RANDOM.normal(size=ROWS)}

Prepare = Callable[..., PreparedModel]


@pytest.fixture
def publish(tmp_path: Path) -> Prepare:
    def run(source: Any, examples: Any = NUMBERS, **options: Any) -> PreparedModel:
        (tmp_path / "tree").mkdir(exist_ok=True)
        return prepare(source, examples, directory=tmp_path / "tree", **options)

    return run


def trained() -> Any:
    """Three numbers to two classes, with what differs between training and eval: dropout and batch normalisation."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2), nn.Softmax(1)
    )
    x = torch.from_numpy(np.stack(list(NUMBERS.values()), 1).astype(np.float32))
    target = (x[:, 0] + x[:, 2] > 0).long()
    optimizer = torch.optim.Adam(module.parameters(), 0.05)
    for _ in range(10):
        optimizer.zero_grad()
        nn.functional.nll_loss(torch.log(module(x)), target).backward()
        optimizer.step()
    return module


def read(path: Path, *, trust_pickle: bool) -> Any:
    return load(path, print, trust_pickle=trust_pickle)


def outputs(prepared: PreparedModel) -> dict[str, np.ndarray]:
    return dict(golden.read(prepared.directory / "examples.npz").outputs)


def test_a_module_takes_the_fields_in_order_in_batches_of_any_size(publish: Prepare) -> None:
    module = trained()
    module[1].eval()
    prepared = publish(module)
    (binding,) = prepared.signature.inputs
    assert (binding.name, str(binding.dtype), binding.shape) == ("input", "float32", (None, 3))
    assert binding.fields == ("amount", "age", "rate")
    assert [(output.field, output.shape) for output in prepared.signature.outputs] == [("output", (None, 2))]
    assert set(prepared.frameworks) == {"torch", "onnxscript", "onnx", "onnxruntime"}
    assert [part.training for part in module] == [True, False, True, True, True, True]  # left in the modes it was in
    golden_rows = np.linspace(0, ROWS - 1, 100).astype(int)
    x = np.stack([values[golden_rows] for values in NUMBERS.values()], 1).astype(np.float32)
    np.testing.assert_allclose(
        outputs(prepared)["output"], module.eval()(torch.from_numpy(x)).detach().numpy(), atol=1e-5
    )


def test_fields_may_be_named(publish: Prepare) -> None:
    assert publish(trained(), fields=["rate", "amount", "age"]).signature.fields == ("rate", "amount", "age")


class Purchase(nn.Module):
    """Columns of several types: a category goes through an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.shops = nn.Embedding(10, 4)
        self.head = nn.Linear(6, 3)

    def forward(self, amount: Any, shop: Any, abroad: Any, weight: Any = None) -> dict[str, Any]:
        hidden = torch.cat([amount, self.shops(shop), abroad.float()[:, None]], 1)
        logits = self.head(hidden) if weight is None else self.head(hidden) * weight
        return {"probability": logits.softmax(1), "best": logits.argmax(1)}


PURCHASES = {
    "amount": RANDOM.normal(size=ROWS),
    "shop": RANDOM.integers(0, 10, ROWS),
    "abroad": RANDOM.random(ROWS) > 0.5,
    "note": ["?"] * ROWS,
}


def test_parameters_take_columns_of_their_names(publish: Prepare) -> None:
    prepared = publish(Purchase(), PURCHASES)
    found = {b.name: (str(b.dtype), b.shape) for b in prepared.signature.inputs}
    assert found == {"amount": ("float32", (None, 1)), "shop": ("int64", (None,)), "abroad": ("bool", (None,))}
    assert [output.field for output in prepared.signature.outputs] == ["probability", "best"]


def test_a_parameter_with_a_default_is_taken_if_the_examples_have_it(publish: Prepare) -> None:
    prepared = publish(Purchase(), PURCHASES | {"weight": RANDOM.random(ROWS) + 1})
    assert prepared.signature.fields == ("amount", "shop", "abroad", "weight")


@dataclass
class AsData:
    score: Any
    hidden: Any = None


class AsTuple(NamedTuple):
    score: Any
    twice: Any


@pytest.mark.parametrize(
    ("returned", "names"),
    [
        (lambda x: x.sum(1), ["output"]),
        (lambda x: (x.sum(1),), ["output"]),
        (lambda x: (x.sum(1), x * 2), ["output_0", "output_1"]),
        (lambda x: AsTuple(x.sum(1), x * 2), ["score", "twice"]),
        (lambda x: AsData(x.sum(1)), ["score"]),
    ],
)
def test_outputs_are_named_by_what_forward_returns(
    publish: Prepare, returned: Callable[[Any], Any], names: list[str]
) -> None:
    class Returning(nn.Module):
        def forward(self, x: Any) -> Any:
            return returned(x)

    if returned(torch.ones(2, 2)).__class__ is AsData:
        torch.export.register_dataclass(AsData)
    assert [output.field for output in publish(Returning()).signature.outputs] == names


def test_weights_of_float64_take_float64(publish: Prepare) -> None:
    (binding,) = publish(trained().double()).signature.inputs
    assert str(binding.dtype) == "float64"


def test_the_same_module_gives_the_same_files_that_tell_nothing_of_this_machine(tmp_path: Path) -> None:
    seen = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        seen.append([entry.digest for entry in prepare(trained(), NUMBERS, directory=tmp_path / name).files])
        assert b"test_convert_torch" not in (tmp_path / name / "model.onnx").read_bytes()
    assert seen[0] == seen[1]


def test_an_exported_program_from_a_file(publish: Prepare, tmp_path: Path) -> None:
    x = (torch.ones(2, 3),)
    program = torch.export.export(trained().eval(), x, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    path = tmp_path / "m.pt2"
    torch.export.save(program, path)
    loaded = read(path, trust_pickle=False)
    prepared = publish(loaded)
    assert prepared.signature.inputs[0].fields == ("amount", "age", "rate")
    assert prepared.signature.outputs[0].field == "output"


def test_a_program_of_several_inputs_and_keywords(publish: Prepare) -> None:
    batch = {0: torch.export.Dim.DYNAMIC}
    program = torch.export.export(
        Purchase().eval(),
        (torch.ones(2, 1), torch.ones(2, dtype=torch.int64)),
        {"abroad": torch.ones(2, dtype=torch.bool)},
        dynamic_shapes={"amount": batch, "shop": batch, "abroad": batch},
    )
    prepared = publish(program, PURCHASES)
    assert prepared.signature.fields == ("amount", "shop", "abroad")
    assert [output.field for output in prepared.signature.outputs] == ["probability", "best"]


def test_a_program_of_one_batch_size_is_refused(publish: Prepare) -> None:
    program = torch.export.export(trained().eval(), (torch.ones(2, 3),))
    with pytest.raises((StructureError, ConversionError)) as caught:
        publish(program)
    assert "dynamic_shapes" in str(caught.value)


class Doorbell:
    """Rings when it is unpickled."""

    rung = False

    def __reduce__(self) -> Any:
        return (Doorbell.ring, ())

    @staticmethod
    def ring() -> dict[str, Any]:
        Doorbell.rung = True
        return {}


def test_code_in_a_program_file_does_not_run(tmp_path: Path) -> None:
    path, evil = tmp_path / "m.pt2", tmp_path / "evil.pt2"
    torch.export.save(torch.export.export(trained().eval(), (torch.ones(2, 3),)), path)
    whole = zipfile.ZipFile(path)
    with zipfile.ZipFile(evil, "w") as altered:
        for entry in whole.infolist():
            data = whole.read(entry)
            name = entry.filename
            if name.endswith(".pt"):  # what torch.load reads: constants and sample inputs
                torch.save(Doorbell(), tmp_path / "bell.pt")
                data = (tmp_path / "bell.pt").read_bytes()
            altered.writestr(entry, data)
    with pytest.raises(SourceError, match="can't load"):
        read(evil, trust_pickle=False)
    assert not Doorbell.rung
    with contextlib.suppress(SourceError):
        read(evil, trust_pickle=True)
    assert Doorbell.rung  # so there was a bell in it


def test_a_pickled_module_is_read_only_if_trusted(publish: Prepare, tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save(nn.Linear(3, 1), path)
    with pytest.raises(UsageError, match="runs whatever code") as caught:
        read(path, trust_pickle=False)
    assert "--trust-pickle" in str(caught.value.hint)
    assert publish(read(path, trust_pickle=True)).signature.outputs[0].is_scalar


@pytest.mark.parametrize("content", [b"", b"not a file of PyTorch", pickle.dumps({})])
def test_files_that_hold_nothing_of_use(tmp_path: Path, content: bytes) -> None:
    for name in ("m.pt", "m.pt2"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SourceError, match="can't load|not a module"):
            read(tmp_path / name, trust_pickle=True)


def test_weights_alone_are_no_model(tmp_path: Path) -> None:
    torch.save(trained().state_dict(), tmp_path / "m.pt")
    with pytest.raises(SourceError, match="OrderedDict, not a module") as caught:
        read(tmp_path / "m.pt", trust_pickle=True)
    assert "Weights alone" in str(caught.value.hint)


class Branching(nn.Module):
    def forward(self, x: Any) -> Any:
        return x * 2 if x.sum() > 0 else x - 1


class Nested(nn.Module):
    def forward(self, x: Any) -> Any:
        return {"all": (x, x)}


class OfTwo(nn.Module):
    def forward(self, left: Any, right: Any) -> Any:
        return left + right


@pytest.mark.parametrize(
    ("module", "said", "kind"),
    [
        (Branching(), "can't export the module Branching", ConversionError),
        (Nested(), "no tensor as 'all'", ConversionError),
        (nn.Linear(7, 1), r"Linear fails on the examples \(input float32 \[N, 3\]\)", ConversionError),
        (nn.Linear(3, 1).half(), "weights of torch.float16", ConversionError),
        (OfTwo(), "no field of the examples matches parameter 'left', 'right'", BindingError),
    ],
)
def test_what_cannot_be_exported_says_why_and_what_to_do(
    publish: Prepare, module: Any, said: str, kind: type[Exception]
) -> None:
    with pytest.raises(kind, match=said) as caught:
        publish(module)
    assert caught.value.hint  # type: ignore[attr-defined]


def test_texts_are_not_numbers(publish: Prepare) -> None:
    with pytest.raises(BindingError, match="'note' of the examples is not a number"):
        publish(trained(), NUMBERS | {"note": ["x"] * ROWS})


def test_torchscript_is_named(publish: Prepare) -> None:
    with warnings.catch_warnings(action="ignore"):
        traced = torch.jit.trace(trained().eval(), (torch.ones(2, 3),))
    with pytest.raises(ConversionError, match="TorchScript") as caught:
        publish(traced)
    assert "torch.export" in str(caught.value.hint)


def test_a_tensor_is_no_model() -> None:
    assert not converters.recognises(torch.ones(3))


def test_the_graph_is_one_that_onnx_accepts(publish: Prepare) -> None:
    prepared = publish(trained())
    assert prepared.opsets[""] == torch_converter.OPSET
    onnx.checker.check_model(str(prepared.directory / "model.onnx"))
