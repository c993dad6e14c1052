import sys
import time

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mpiserve import Backend, backends
from mpiserve.backends.base import import_object, read_again
from mpiserve.backends.torch import torch_backend
from mpiserve.config import DTYPES, Config
from mpiserve.errors import ArgumentError, ModelError

MODELS = """
import numpy as np
import torch
import mpiserve


def mlp(seed=0, out=3):
    torch.manual_seed(seed)
    layers = torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, out), torch.nn.Dropout()
    return torch.nn.Sequential(*layers)


class Two(torch.nn.Module):
    def forward(self, x):
        return {"sum": x.sum(1), "twice": x * 2}


class Pair(torch.nn.Module):
    def forward(self, x, index):
        return x * index[:, None]


class Double(torch.nn.Module):
    def forward(self, x):
        return x.double()


class Arrays(torch.nn.Module):
    def forward(self, x):
        return x.numpy()


def not_a_module():
    return 3


def negative(x, factor=1):
    return -x * np.float32(factor)


class Scale:
    def __init__(self, factor=1):
        self.factor = np.float32(factor)

    def __call__(self, x):
        return x * self.factor


class Ten(mpiserve.Backend):
    def load(self):
        self.ten = np.float32(10)

    def run(self, inputs):
        return inputs[0] * self.ten


number = 3
"""

X = {"name": "x", "dtype": "float32", "shape": [-1, 3]}
Y = {"name": "y", "dtype": "float32", "shape": [-1, 3]}
TORCH_KINDS = ("torch", "deepspeed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models")
    (path / "some_models.py").write_text(MODELS)
    sys.path.insert(0, str(path))
    yield path
    sys.path.remove(str(path))
    sys.modules.pop("some_models", None)


@pytest.fixture
def make(folder):
    """A backend for a service's table, loaded."""

    def build(backend, model, **table):
        table = {"backend": backend, "model": model, "inputs": [X], "outputs": [Y]} | table
        service = Config.from_dict({"service": {"s": table}}, folder=folder).services[0]
        made = backends.create(service)
        made.load()
        return made

    return build


@pytest.fixture
def mlp(folder):
    import some_models

    return some_models.mlp().eval()


def rows(n=5):
    return np.random.default_rng(n).standard_normal((n, 3), dtype=np.float32)


def direct(module, x):
    torch.set_num_threads(1)
    with torch.inference_mode():
        return module(torch.from_numpy(x)).numpy()


@pytest.mark.parametrize("kind", TORCH_KINDS)
@pytest.mark.parametrize("n", [1, 7, 1000])
def test_a_module_from_a_factory_equals_itself_bit_for_bit(make, mlp, kind, n):
    (result,) = make(kind, "some_models:mlp").run((rows(n),))
    np.testing.assert_array_equal(result, direct(mlp, rows(n)))


@pytest.mark.parametrize("kind", TORCH_KINDS)
def test_a_torchscript_file_equals_its_module(make, mlp, folder, kind):
    torch.jit.save(torch.jit.script(mlp), folder / "mlp.pt")
    (result,) = make(kind, "mlp.pt").run((rows(),))
    np.testing.assert_array_equal(result, direct(mlp, rows()))


@pytest.mark.parametrize("kind", TORCH_KINDS)
def test_an_exported_program_equals_its_module_for_any_rows(make, mlp, folder, kind):
    dynamic = ({0: torch.export.Dim("rows", min=1, max=4096)},)
    program = torch.export.export(mlp, (torch.from_numpy(rows(4)),), dynamic_shapes=dynamic)
    torch.export.save(program, folder / "mlp.pt2")
    backend = make(kind, "mlp.pt2")
    for n in (1, 9):
        (result,) = backend.run((rows(n),))
        np.testing.assert_array_equal(result, direct(mlp, rows(n)))


@pytest.mark.parametrize("kind", TORCH_KINDS)
def test_options_reach_the_factory_and_weights_its_module(make, folder, kind):
    import some_models

    other = some_models.mlp(seed=5).eval()
    save_file(other.state_dict(), folder / "w.safetensors")
    options = {"arguments": {"seed": 9}, "weights": "w.safetensors"}
    (result,) = make(kind, "some_models:mlp", options=options).run((rows(),))
    np.testing.assert_array_equal(result, direct(other, rows()))
    (result,) = make(kind, "some_models:mlp", options={"arguments": {"seed": 9}}).run((rows(),))
    np.testing.assert_array_equal(result, direct(some_models.mlp(seed=9).eval(), rows()))


def test_engines_are_named_by_their_classes(make):
    assert (
        make("deepspeed", "some_models:mlp").engine == "deepspeed.inference.engine.InferenceEngine"
    )
    assert make("torch", "some_models:mlp").engine == "torch.nn.modules.container.Sequential"
    assert make("python", "some_models:negative").engine == "some_models.negative"
    assert make("python", "some_models:Scale").engine == "some_models.Scale"
    assert make("some_models:Ten", None).engine == "some_models.Ten"


def test_deepspeed_gets_its_own_options(make):
    options = {"init_inference": {"max_out_tokens": 77}}
    backend = make("deepspeed", "some_models:mlp", options=options)
    assert backend.module._config.max_out_tokens == 77


def test_the_dtype_of_a_deepspeed_engine_is_that_of_the_service(make):
    backend = make("deepspeed", "some_models:mlp", dtype="bfloat16")
    assert next(backend.module.parameters()).dtype == torch.bfloat16
    options = {"init_inference": {"dtype": "float16"}}
    with pytest.raises(ArgumentError, match=r"options\.init_inference\.dtype: set dtype of the"):
        make("deepspeed", "some_models:mlp", options=options)


def test_deepspeed_needs_no_process_group_and_no_compiled_operation(make):
    import deepspeed

    make("deepspeed", "some_models:mlp")
    assert not torch.distributed.is_initialized()
    assert deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] is False


@pytest.mark.parametrize("kind", TORCH_KINDS)
def test_the_models_own_arithmetic_does_not_change_the_signature(make, mlp, kind):
    (result,) = make(kind, "some_models:mlp", dtype="bfloat16").run((rows(),))
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, direct(mlp, rows()), atol=0.05)


def test_bfloat16_tensors_come_and_go(make):
    tensors = [{"name": "x", "dtype": "bfloat16", "shape": [-1, 3]}]
    table = {"inputs": tensors, "outputs": [tensors[0] | {"name": "y"}], "dtype": "bfloat16"}
    (result,) = make("torch", "some_models:mlp", **table).run((rows().astype(ml_dtypes.bfloat16),))
    assert result.dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize("name", [name for name in DTYPES if name != "bfloat16"])
def test_arrays_become_tensors_and_arrays_again(make, name):
    tensors = [{"name": "x", "dtype": name, "shape": [-1, 3]}]
    backend = make("torch", "torch.nn:Identity", inputs=tensors, outputs=tensors)
    array = np.arange(6).reshape(2, 3).astype(name)
    (result,) = backend.run((array,))
    assert result.dtype == array.dtype
    np.testing.assert_array_equal(result, array)


@pytest.mark.parametrize("kind", TORCH_KINDS)
def test_a_batch_in_chunks_is_put_in_place_and_right(make, mlp, kind):
    backend = make(kind, "some_models:mlp", chunk_rows=4)
    batch, place = (rows(10),), (np.zeros((10, 3), np.float32),)
    done = []
    assert backend.run_batch(batch, place, done.append) is place
    assert done == [4, 8, 10]
    np.testing.assert_allclose(place[0], direct(mlp, rows(10)), rtol=1e-5, atol=1e-6)


def test_a_chunk_of_a_wrong_shape_or_dtype_is_refused(make):
    backend = make("torch", "some_models:Double", chunk_rows=4)
    with pytest.raises(ModelError, match=r"output 'y': expected float32 \[4, 3\], got float64"):
        backend.run_batch((rows(10),), (np.zeros((10, 3), np.float32),), print)
    backend = make("torch", "some_models:mlp", options={"arguments": {"out": 2}}, chunk_rows=4)
    with pytest.raises(ModelError, match=r"expected float32 \[4, 3\], got float32 \[4, 2\]"):
        backend.run_batch((rows(10),), (np.zeros((10, 3), np.float32),), print)


class Costs(torch.nn.Module):
    """Takes long for more than 256 rows at a time, and for each call."""

    def forward(self, x):
        time.sleep(0.001 + 1e-5 * max(0, len(x) - 256))
        return x


def test_tuning_finds_the_chunk_that_is_fastest(make):
    backend = make("torch", "torch.nn:Identity", max_batch_rows=2048)
    backend.module = Costs()
    batch = np.zeros((2048, 3), np.float32)
    backend.tune((batch,), (np.zeros_like(batch),))
    assert backend.chunk_rows in (256, 512)


def test_tuning_leaves_alone_what_the_service_says_or_what_gains_nothing(make):
    batch = (np.zeros((300, 3), np.float32),)
    backend = make("torch", "some_models:mlp", chunk_rows=7)
    backend.tune(batch, batch)
    assert backend.chunk_rows == 7
    backend = make("torch", "torch.nn:Identity")
    backend.module = Costs()
    backend.tune((batch[0][:200],), (batch[0][:200],))
    assert backend.chunk_rows == 0


def test_while_serving_inference_mode_is_entered_once(make):
    backend = make("torch", "torch.nn:Identity")
    assert not torch.is_inference_mode_enabled()
    with backend.serving():
        assert torch.is_inference_mode_enabled()
        backend.run((rows(),))
    assert not torch.is_inference_mode_enabled()


def test_tensors_view_the_batch(make):
    array = rows()
    assert torch_backend.tensor_of(array).data_ptr() == array.ctypes.data
    array = array.astype(ml_dtypes.bfloat16)
    assert torch_backend.tensor_of(array).data_ptr() == array.ctypes.data


def test_integers_keep_their_dtype(make):
    inputs = [X, {"name": "index", "dtype": "int64", "shape": [-1]}]
    backend = make("torch", "some_models:Pair", inputs=inputs)
    (result,) = backend.run((rows(2), np.array([1, 2])))
    np.testing.assert_array_equal(result, rows(2) * np.float32([[1], [2]]))


def test_outputs_are_found_by_name(make):
    outputs = [
        {"name": "twice", "dtype": "float32", "shape": [-1, 3]},
        {"name": "sum", "dtype": "float32", "shape": [-1]},
    ]
    twice, total = make("torch", "some_models:Two", outputs=outputs).run((rows(),))
    np.testing.assert_array_equal(twice, rows() * 2)
    assert total.shape == (5,)


def test_a_read_only_batch_causes_no_warning(make, recwarn):
    array = rows()
    array.flags.writeable = False
    make("torch", "some_models:mlp").run((array,))
    assert not recwarn.list


def test_an_output_of_an_unexpected_dtype_is_refused(make):
    (result,) = make("torch", "some_models:Double").run((rows(),))
    assert result.dtype == np.float64


def test_a_module_must_return_tensors(make):
    with pytest.raises(ModelError, match="must return tensors, not ndarray"):
        make("torch", "some_models:Arrays").run((rows(),))


@pytest.mark.parametrize("kind", TORCH_KINDS)
def test_threads_are_those_of_the_configuration(make, kind):
    make(kind, "some_models:mlp", threads=2)
    assert torch.get_num_threads() == 2
    make(kind, "some_models:mlp")
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("kind", TORCH_KINDS)
def test_a_module_is_compiled_once_for_any_rows(make, mlp, kind):
    compiled = []

    def compiler(graph, _inputs):  # in place of the one that writes C++, which takes half a minute
        compiled.append(graph)
        return graph.forward

    backend = make(kind, "some_models:mlp", options={"compile": {"backend": compiler}})
    for n in (1, 64):  # as the server does to warm up
        backend.run((rows(n),))
    before = len(compiled)
    assert before > 0
    for n in (2, 5, 33, 1):
        np.testing.assert_array_equal(backend.run((rows(n),))[0], direct(mlp, rows(n)))
    assert len(compiled) == before


@pytest.mark.parametrize(
    ("model", "table", "text"),
    [
        ("some_models:mlp", {"options": {"compile": "fastest"}}, "fastest"),
        ("some_models:mlp", {"options": {"compile": {"modes": "x"}}}, "modes"),
        ("some_models:mlp", {"options": {"compile": True}, "warmup": False}, "needs warmup"),
        ("script.pt", {"options": {"compile": True}}, "TorchScript is compiled already"),
    ],
)
def test_what_cannot_be_compiled_is_named(make, mlp, folder, model, table, text):
    torch.jit.save(torch.jit.script(mlp), folder / "script.pt")
    with pytest.raises(ArgumentError, match=rf"^service.s.options.compile: .*{text}") as caught:
        make("torch", model, **table)
    assert "\n" not in str(caught.value)


def test_a_compiler_that_is_not_there_is_named(make, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ArgumentError, match="compile: needs a C.. compiler, .* 'no-such-compiler'"):
        make("torch", "some_models:mlp", options={"compile": True})


def test_a_function_is_called_with_the_options(make):
    np.testing.assert_array_equal(make("python", "some_models:negative").run((rows(),)), -rows())
    backend = make("python", "some_models:negative", options={"factor": 2})
    np.testing.assert_array_equal(backend.run((rows(),)), -rows() * 2)


def test_a_class_is_made_once_with_the_options(make):
    backend = make("python", "some_models:Scale", options={"factor": 3})
    np.testing.assert_array_equal(backend.run((rows(),)), rows() * np.float32(3))


def test_a_backend_of_the_users_is_named_in_the_configuration(make):
    backend = make("some_models:Ten", None)
    assert isinstance(backend, Backend)
    np.testing.assert_array_equal(backend.run((rows(),)), rows() * np.float32(10))


MISTAKES = [
    ("torch", "no_such_module:build", {}, "'no_such_module:build': no module 'no_such_module' in"),
    ("torch", "some_models:nope", {}, "'some_models:nope': the module has no 'nope'"),
    ("torch", "some_models:not_a_module", {}, "must return a torch.nn.Module, not int"),
    ("torch", "nowhere.pt2", {}, "nowhere.pt2: no such file"),
    ("torch", "some_models.py", {}, "some_models.py: torch cannot load it (.*); a model is "),
    ("python", "some_models:number", {}, "'some_models:number' is not callable"),
    (
        "some_models:negative",
        None,
        {},
        "'some_models:negative' is not a subclass of mpiserve.Backend",
    ),
]


@pytest.mark.parametrize(("kind", "model", "table", "text"), MISTAKES)
def test_a_model_that_is_not_there_is_named(make, kind, model, table, text):
    with pytest.raises(ModelError, match=text.replace("(.*)", r"\(.*\)")) as caught:
        make(kind, model, **table)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "model", "option", "text"),
    [
        ("torch", "some_models:mlp", "weight", "unknown key (did you mean 'weights'?)"),
        (
            "torch",
            "some_models:mlp",
            "init_inference",
            "unknown key (one of: arguments, weights, compile)",
        ),
        ("deepspeed", "some_models:mlp", "init_inferenc", "(did you mean 'init_inference'?)"),
        ("torch", "mlp.pt2", "weights", "needs a model 'module:callable'"),
        ("echo", None, "size", "unknown key (there are none)"),
    ],
)
def test_an_option_that_does_not_fit_is_named(make, kind, model, option, text):
    table = {"outputs": [X]} if kind == "echo" else {}
    with pytest.raises(ArgumentError) as caught:
        make(kind, model, options={option: "x"}, **table)
    assert str(caught.value).startswith(f"service.s.options.{option}: ")
    assert str(caught.value).endswith(text)


def test_an_error_inside_a_model_file_is_not_mistaken_for_a_missing_one(make, folder):
    (folder / "broken.py").write_text("import no_such_library\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        make("torch", "broken:build")


def test_a_module_that_is_read_again_leaves_the_one_before_as_it_was(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "read_twice.py"
    path.write_text("FACTOR = 2\ndef f(x): return FACTOR * x\n")
    first = import_object("read_twice:f", tmp_path)
    # Within a second, and as many bytes: what was compiled before would be taken for this one.
    path.write_text("FACTOR = 3\ndef f(x): return FACTOR * x\n")
    read_again("read_twice")
    assert import_object("read_twice:f", tmp_path)(1) == 3
    assert first(1) == 2
    path.write_text("FACTOR = ")
    with pytest.raises(SyntaxError):
        read_again("read_twice")
    assert import_object("read_twice:f", tmp_path)(1) == 3
    path.unlink()
    with pytest.raises(FileNotFoundError):
        read_again("read_twice")
    read_again("never_imported")
