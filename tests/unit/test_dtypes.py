"""Conversions of modules and tensors, and their log."""

import logging

import dtype_models as models
import ml_dtypes
import numpy as np
import pytest
import torch

from mpiserve import backends
from mpiserve.backends import arrays
from mpiserve.backends.torch import dtypes
from mpiserve.config import Config
from mpiserve.errors import ConfigError, ModelError

KINDS = ("torch", "deepspeed")
FLOAT = {"dtype": "float32", "shape": [-1, 2]}


@pytest.fixture
def make(tmp_path):
    """A backend of a model of this file, loaded; x and y are updates of its tensors."""

    def build(kind, model, x=None, y=None, **table):
        table |= {"backend": kind, "model": model if ":" in model else f"dtype_models:{model}"}
        table["inputs"] = [FLOAT | {"name": "x"} | (x or {})]
        table["outputs"] = [FLOAT | {"name": "y"} | (y or {})]
        service = Config.from_dict({"service": {"s": table}}, folder=tmp_path).services[0]
        made = backends.create(service)
        made.load()
        return made

    return build


def rows(dtype="float32"):
    return np.random.default_rng(1).standard_normal((5, 2)).astype(dtype)


def alone(module, x):
    """What the model gives without mpiserve."""
    with torch.inference_mode():
        return module.eval()(torch.from_numpy(x)).numpy()


def bytes_of(tensor):
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def tensors(backend):
    module = backend.module
    return dtypes.held(getattr(module, "module", module))


KEPT = ["plain", "mixed", "constants", "spectral", "Statistics", "float8", "quantised"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", KEPT)
def test_a_model_keeps_its_own_dtypes(make, kind, model):
    backend, module = make(kind, model), getattr(models, model)()
    np.testing.assert_array_equal(backend.run((rows(),))[0], alone(module, rows()))
    for name, tensor in dtypes.held(module).items():
        kept = tensors(backend)[name]
        assert kept.dtype == tensor.dtype
        assert bytes_of(kept) == bytes_of(tensor)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", ["plain", "constants", "spectral", "float8"])
def test_the_dtype_that_a_model_has_changes_nothing(make, kind, model):
    backend = make(kind, model, dtype="float32")
    np.testing.assert_array_equal(
        backend.run((rows(),))[0], alone(getattr(models, model)(), rows())
    )


@pytest.mark.parametrize("kind", KINDS)
def test_sparse_buffers_are_kept_and_converted(make, kind):
    for dtype in ("float32", "float64"):
        backend = make(kind, "sparse", dtype=dtype)
        assert tensors(backend)["links"].dtype == getattr(torch, dtype)
        np.testing.assert_allclose(
            backend.run((rows(),))[0], alone(models.sparse(), rows()), rtol=1e-5, atol=1e-6
        )


def test_a_model_that_changes_the_default_dtype_is_named(make, caplog):
    try:
        make("torch", "default_dtype")
    finally:
        torch.set_default_dtype(torch.float32)
    assert "changed torch's default dtype, for all models of this rank" in caplog.text


@pytest.mark.parametrize("kind", KINDS)
def test_float64_is_computed_by_both_backends(make, kind):
    double = {"dtype": "float64"}
    for model, table in (("plain", {"dtype": "float64"}), ("double", {})):
        backend = make(kind, model, double, double, **table)
        expected = alone(models.plain().double(), rows("float64"))
        np.testing.assert_array_equal(backend.run((rows("float64"),))[0], expected)
    lookup = make(kind, "Lookup", {"dtype": "int64", "shape": [-1]}, double)
    index = np.array([3, 0])
    np.testing.assert_array_equal(
        lookup.run((index,))[0], tensors(lookup)["table.weight"].numpy()[index]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_complex_weights_go_to_complex_ones(make, kind):
    backend = make(kind, "spectral", {"dtype": "float64"}, {"dtype": "float64"}, dtype="float64")
    module = models.spectral()
    module.weight.data, module.shift = module.weight.data.cdouble(), module.shift.cdouble()
    expected = alone(module.double(), rows("float64"))
    np.testing.assert_array_equal(backend.run((rows("float64"),))[0], expected)
    with pytest.raises(Exception, match=r"s\.dtype: 'weight' is complex64, which has no bfloat16"):
        make(kind, "spectral", dtype="bfloat16")


@pytest.mark.parametrize("kind", KINDS)
def test_a_dtype_for_a_model_that_mixes_them_is_an_error(make, kind):
    text = r"^service\.s\.dtype: the model holds float32 \('a.weight'\) and float64 \('b.weight'\)"
    for dtype in ("float32", "bfloat16"):
        with pytest.raises(Exception, match=text):
            make(kind, "mixed", dtype=dtype)
    with pytest.raises(Exception, match=r"float64 \('tiny'\), and to make all float16 would lose"):
        make(kind, "constants", dtype="float16")
    # Nothing is lost where all become wider.
    assert {t.dtype for t in tensors(make(kind, "mixed", dtype="float64")).values()} == {
        torch.float64
    }


@pytest.mark.parametrize(
    ("value", "text"), [(1e38, "holds numbers beyond 6.6e.04"), (1e-30, "becomes all zero")]
)
def test_weights_that_a_dtype_cannot_hold_are_an_error(value, text):
    module = torch.nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        module.weight.fill_(value)
    with pytest.raises(ModelError, match=rf"^k: 'weight' \(float32\) {text}"):
        dtypes.convert(module, torch.float16, "k")
    assert module.weight.dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_half_weights_stay_half_on_a_cpu(make, kind):
    backend = make(kind, "half")
    expected = alone(models.half(), rows("float16")).astype("float32")
    np.testing.assert_array_equal(backend.run((rows(),))[0], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_conversion_is_logged_once_with_its_loss(make, caplog, kind):
    caplog.set_level(logging.INFO, "mpiserve")
    double = {"dtype": "float64"}
    backend = make(kind, "plain", double, double)
    for _ in range(3):
        (result,) = backend.run((rows("float64"),))
    expected = alone(models.plain(), rows("float64").astype("float32"))
    np.testing.assert_array_equal(result, expected.astype("float64"))
    said = [record.getMessage() for record in caplog.records if "converted" in record.getMessage()]
    assert [line.split(":")[0] for line in said] == ["service s"] * 2
    assert "input 'x' is float64, and the model computes in float32: it is converted" in said[0]
    assert "of 16 digits 7 remain, below 1.2e-38 " in said[0]
    assert "output 'y' is float64, and the model gives float32: " in said[1]
    assert "7 digits of float32" in said[1]
    assert all("convert = true" in line for line in said)
    caplog.clear()
    wanted = {"dtype": "float64", "convert": True}
    np.testing.assert_array_equal(
        make(kind, "plain", wanted, wanted).run((rows("float64"),))[0], result
    )
    assert "convert" not in caplog.text


def test_nothing_is_logged_without_a_conversion(make, caplog):
    caplog.set_level(logging.INFO, "mpiserve")
    make("torch", "plain").run((rows(),))
    make("torch", "mixed").run((rows(),))
    make("torch", "Lookup", {"dtype": "int64", "shape": [-1]}, {"dtype": "float64"})
    assert "convert" not in caplog.text


@pytest.mark.parametrize("convert", [None, True])
def test_a_number_that_would_become_infinite_is_an_error(make, convert):
    backend = make("torch", "plain", {"dtype": "float64", "convert": convert})
    batch = rows("float64")
    batch[3, 1] = -1e300
    with pytest.raises(ModelError, match=r"^input 'x': row 3 has -1e.300, and float32 ends at 3.4"):
        backend.run((batch,))
    batch[3, 1], batch[2, 0] = np.inf, np.nan  # as they were
    expected = alone(models.plain(), batch.astype("float32"))
    np.testing.assert_array_equal(backend.run((batch,))[0], expected)
    backend = make("torch", "torch.nn:Identity", y={"dtype": "float16", "convert": True})
    with pytest.raises(ModelError, match=r"^output 'y': row 0 has 70000, and float16 ends at 6.6"):
        backend.run((np.full((2, 2), 7e4, np.float32),))
    back = make("torch", "ToDouble", y={"convert": True})
    assert back.run((np.array([[np.inf, np.nan]], np.float32),))[0][0, 0] == np.inf
    bf16 = make("torch", "torch.nn:Identity", y={"dtype": "bfloat16", "convert": True})
    assert bf16.run((rows(),))[0].dtype == ml_dtypes.bfloat16


# Each number, and what it is as a float32: rounded to nearest, even where two are as near.
LARGEST = float(np.finfo(np.float32).max)
TINY = 2.0**-149  # the smallest that is not 0
ROUNDED = {
    1 / 3: 11184811 * 2.0**-25,
    1 + 2.0**-24: 1.0,
    1 + 3 * 2.0**-24: 1 + 2.0**-22,
    LARGEST: LARGEST,
    -LARGEST - 2.0**102: -LARGEST,  # less than half a step beyond
    2.0**-126: 2.0**-126,
    1e-40: 71362 * TINY,  # with 5 digits
    TINY: TINY,
    0.51 * TINY: TINY,
    0.5 * TINY: 0.0,
    5e-324: 0.0,
    -1e-300: -0.0,
    np.inf: np.inf,
    -np.inf: -np.inf,
    np.nan: np.nan,
}


@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_numbers_are_rounded_to_the_nearest(make, rows):
    double = {"dtype": "float64", "convert": True, "shape": [-1, len(ROUNDED)]}
    backend = make("torch", "Identity32", double, double)
    x = np.tile(np.array([*ROUNDED]), (rows, 1))
    place = (np.zeros_like(x),)
    backend.run_batch((x,), place, print)
    for result in (place[0], backend.run((x,))[0]):
        np.testing.assert_array_equal(result, np.tile([*ROUNDED.values()], (rows, 1)))
        assert np.signbit(result[-1][[*ROUNDED].index(-1e-300)])
    values = 10 ** np.random.default_rng(1).uniform(-37, 38, x.shape)
    relative = np.abs(backend.run((values,))[0] / values - 1)
    assert 2.0**-26 < relative.max() <= 2.0**-24


@pytest.mark.parametrize("value", [LARGEST + 2.0**103, -1e39, 1.7e308])
@pytest.mark.parametrize("at", [(0, 0), (599, 14)])
def test_every_number_is_looked_at(make, value, at):
    double = {"dtype": "float64", "convert": True, "shape": [-1, len(ROUNDED)]}
    backend = make("torch", "Identity32", double, double)
    x = np.tile(np.array([*ROUNDED]), (600, 1))
    x[at] = value
    text = f"^input 'x': row {at[0]} has {value:g}, and float32 ends at 3.4e.38$"
    with pytest.raises(ModelError, match=text.replace("+", r"\+")):
        backend.run_batch((x,), (np.zeros_like(x),), print)


@pytest.mark.parametrize("source", ["float32", "float64"])
@pytest.mark.parametrize("value", [3.4e38, -3.397e38])
def test_what_rounds_to_infinity_is_an_error_in_bfloat16_too(source, value):
    x = np.array([[1, np.inf], [np.nan, value]], source)
    target = np.zeros(x.shape, ml_dtypes.bfloat16)
    text = rf"^x: row 1 has {value:g}, and bfloat16 ends at 3.4".replace("+", r"\+")
    with pytest.raises(ModelError, match=text):
        arrays.cast(x, target, "x")
    x[1, 1] = 3.38e38
    arrays.cast(x, target, "x")
    assert np.isfinite(target[1, 1]) and np.isinf(target[0, 1]) and np.isnan(target[1, 0])


def complex_rows(dtype="complex64"):
    return (rows("float64") + 1j * rows("float64")[::-1]).astype(dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_complex_models_compute_in_their_dtype(make, kind):
    one, two = {"dtype": "complex64"}, {"dtype": "complex128"}
    x, fourier = complex_rows("complex128"), models.fourier()
    expected = alone(fourier, x.astype("complex64"))
    np.testing.assert_array_equal(
        make(kind, "fourier", one, one).run((complex_rows(),))[0], expected
    )
    wide = make(kind, "fourier", two | {"convert": True}, two | {"convert": True})
    place = (np.zeros_like(x),)
    wide.run_batch((x,), place, print)
    np.testing.assert_array_equal(place[0], expected.astype("complex128"))
    double = make(kind, "fourier", two, two, dtype="float64")
    np.testing.assert_allclose(
        double.run((x,))[0], alone(fourier.to(torch.complex128), x), rtol=1e-12
    )
    x[2, 1] = complex(np.inf, -1e300)
    with pytest.raises(ModelError, match=r"^input 'x': row 2 has -1e.300, and float32 ends at 3.4"):
        wide.run((x,))


def test_complex_results_are_views_or_are_converted(make):
    one, two = {"dtype": "complex64"}, {"dtype": "complex128"}
    z, place = complex_rows(), (np.zeros((5, 2), "complex64"),)
    backend = make("torch", "Conjugate", one, one)
    backend.run_batch((z,), place, print)
    np.testing.assert_array_equal(place[0], z.conj())
    np.testing.assert_array_equal(backend.run((z,))[0], z.conj())
    narrow = make("torch", "Conjugate", two, one | {"convert": True})
    narrow.run_batch((z.astype("complex128"),), place, print)
    np.testing.assert_array_equal(place[0], z.conj())
    with pytest.raises(ModelError, match=r"expected complex64 .*, got complex128 .*convert = true"):
        make("torch", "Conjugate", two, one).run_batch((z.astype("complex128"),), place, print)
    for theirs, mine in ((FLOAT, one), (one, FLOAT)):
        with pytest.raises(ModelError, match=f"expected {mine['dtype']} .*, got {theirs['dtype']}"):
            make("torch", "torch.nn:Identity", theirs, mine | {"convert": True}).run_batch(
                (rows().astype(theirs["dtype"]),), (np.zeros((5, 2), mine["dtype"]),), print
            )


def test_convert_false_hands_over_what_there_is(make):
    backend = make("torch", "Statistics", {"dtype": "float64", "convert": False})
    np.testing.assert_array_equal(
        backend.run((rows("float64"),))[0], alone(models.Statistics(), rows("float64"))
    )
    place = (np.zeros((5, 2)),)
    with pytest.raises(ModelError, match=r"expected float64 \[5, 2\], got float32"):
        make("torch", "plain", y={"dtype": "float64", "convert": False}).run_batch(
            (rows(),), place, print
        )


def test_digits_of_a_result_are_lost_only_if_configured(make):
    place = (np.zeros((5, 2), np.float32),)
    text = r"output 'y': expected float32 \[5, 2\], got float64 \[5, 2\]; .*convert = true"
    with pytest.raises(ModelError, match=text):
        make("torch", "ToDouble").run_batch((rows(),), place, print)
    backend = make("torch", "ToDouble", y={"convert": True})
    assert backend.run_batch((rows(),), place, print) is place
    np.testing.assert_array_equal(place[0], rows())


@pytest.mark.parametrize("convert", [None, True])
def test_floats_never_become_integers_nor_integers_floats(make, convert):
    place = (np.zeros((5, 2), np.int64),)
    with pytest.raises(ModelError, match="expected int64 .*, got float32"):
        make("torch", "plain", y={"dtype": "int64"}).run_batch((rows(),), place, print)
    floats = (np.zeros((5, 2), np.float32),)
    with pytest.raises(ModelError, match="expected float32 .*, got int64"):
        make("torch", "Whole", y={"convert": convert}).run_batch((rows(),), floats, print)
    for model, dtype, mine in (("plain", "int64", "in float32"), ("mixed", "float64", "in no dty")):
        backend = make("torch", model, {"dtype": dtype})
        with pytest.raises(ModelError, match=rf"; the inputs are 'x' {dtype}, .* computes {mine}"):
            backend.run((np.ones((2, 2), dtype),))


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ({"x": {"dtype": "int64", "convert": True}}, "a tensor of int64 is never converted"),
        ({"x": {"dtype": "uint32", "convert": False}}, "a tensor of uint32 is never converted"),
        ({"y": {"dtype": "complex64", "min": 0.0}}, "complex64 has no order, so it has no bounds"),
        ({"y": {"dtype": "complex128", "max": 1.0}}, 'check = "finite" can be set'),
        ({"kind": "python", "x": {"convert": True}}, "the backend 'python' converts nothing"),
        ({"kind": "python", "dtype": "float32"}, "dtype: the backend 'python' converts no model"),
        ({"dtype": "complex64"}, "unknown model dtype 'complex64'"),
    ],
)
def test_what_has_no_meaning_is_an_error_of_the_configuration(make, table, text):
    with pytest.raises(ConfigError, match=text):
        make(table.pop("kind", "torch"), "plain", **table)


ASKING = ["Forces", "Direct", "Backward", "Jacobian", "Tangent", "in_inference_mode"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", ASKING)
def test_a_model_may_ask_for_gradients(make, caplog, kind, model):
    caplog.set_level(logging.INFO, "mpiserve")
    backend = make(kind, model, chunk_rows=2)
    place = (np.zeros((5, 2), np.float32),)
    torch.manual_seed(5)
    with torch.no_grad():
        expected = getattr(models, model.replace("in_inference_mode", "Forces"))()
        expected = expected(torch.from_numpy(rows()).clone()).numpy()
    with backend.serving():  # as without warm-up
        batch = (rows(),)
        for _ in range(3):
            backend.run_batch(batch, place, lambda _: None)
            np.testing.assert_allclose(place[0], expected, rtol=1e-5, atol=1e-6)
    with backend.serving():
        np.testing.assert_allclose(backend.run((rows(),))[0], expected, rtol=1e-5, atol=1e-6)
    assert caplog.text.count("needs gradients") == 1
    caplog.clear()
    make(kind, "plain").run((rows(),))
    assert "gradients" not in caplog.text


def test_a_model_that_comes_back_while_serving_can_ask_for_gradients(make):
    with torch.inference_mode():
        backend = make("torch", "Forces")
    assert not any(tensor.is_inference() for tensor in tensors(backend).values())
    assert np.isfinite(backend.run((rows(),))[0]).all()


def test_deepspeed_that_changes_a_tensor_is_found_out():
    module = models.mixed()
    before = dtypes.held(module)
    dtypes.compare(module, before, True)
    module.float()
    with pytest.raises(ModelError, match=r"'b.weight' from float64 to float32: set backend = 'tor"):
        dtypes.compare(module, before, True)
    module = models.plain()
    before = dtypes.held(module)
    module[0].bias.data = module[0].bias.data + 1
    with pytest.raises(ModelError, match=r"DeepSpeed changes the values of '0.bias': set"):
        dtypes.compare(module, before, True)
