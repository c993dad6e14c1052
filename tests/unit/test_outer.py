"""Backends around others: what a restarted child needs to know passes through all of them."""

import pytest

from mpiserve.backends.any_shape import AnyShapeBackend
from mpiserve.backends.base import Backend
from mpiserve.backends.distance import DistanceBackend
from mpiserve.backends.outer import OuterBackend
from mpiserve.backends.pre_post import ProcessedBackend
from mpiserve.backends.ragged import RaggedBackend
from mpiserve.backends.whole import WholeBackend
from mpiserve.config import Config

OUTER = [AnyShapeBackend, DistanceBackend, ProcessedBackend, RaggedBackend, WholeBackend]


class Measured(Backend):
    """A model that has measured something."""

    def tune(self, inputs, outputs):
        self.tune_result = 17


def made(outer, folder):
    shape = {"shape": ["nodes", 2], "max_shape": [9, 2]} if outer is RaggedBackend else {}
    x, y = ({"name": n, "dtype": "float32", "shape": [-1, 2]} | shape for n in "xy")
    service = {"backend": "python", "model": "net:f", "inputs": [x], "outputs": [y]}
    if outer is RaggedBackend:
        service |= {"rows": "ragged", "counts": ["nodes"], "max_batch_rows": 8}
    service = Config.from_dict({"service": {"net": service}}, folder=folder).services[0]
    return outer(service, Measured)


@pytest.mark.parametrize("outer", OUTER)
def test_what_a_model_has_measured_is_known_outside_and_handed_on(outer, tmp_path):
    backend, again = made(outer, tmp_path), made(outer, tmp_path)
    backend._model.tune((), ())
    assert backend.tune_result == 17 and again.tune_result is None
    again.tune_result = backend.tune_result
    assert again._model.tune_result == 17


def test_no_outer_backend_is_left_out():
    assert {*OUTER} == {*OuterBackend.__subclasses__()}
