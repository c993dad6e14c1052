"""Answers equal the module in this process, bit for bit, on the same batch and threads."""

import numpy as np
import pytest
from mpi.coupling import couple, tensor
from mpi.models import network


@pytest.mark.timeout(120)
@pytest.mark.roles(simulation=1, inference=1)
@pytest.mark.parametrize("backend", ["torch", "deepspeed"])
def test_the_module_in_this_process_gives_the_same_bits(world, backend):
    service = {
        "backend": backend,
        "model": "models:network",
        "inputs": [tensor("x", "float32", 5)],
        "outputs": [tensor("y", "float32", 3)],
        "threads": 1,
    }

    def simulate(session):
        import torch

        torch.set_num_threads(1)
        module = network().eval()
        served = session.service("network")
        assert ("InferenceEngine" in served.engine) == (backend == "deepspeed")
        random = np.random.default_rng(3)
        for rows in (1, 2, 7, 64, 333, 4096):
            x = random.standard_normal((rows, 5), dtype=np.float32)
            request = served.submit(x)
            answer = request.result()
            assert request.stats["batch_rows"] == rows
            with torch.inference_mode():
                expected = module(torch.from_numpy(x)).numpy()
            assert answer.tobytes() == expected.tobytes()

    couple(world, {"network": service}, simulate)
