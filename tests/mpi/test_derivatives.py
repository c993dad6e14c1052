"""Derivatives of a service: requests of several ranks in a batch, and reloads of both at once."""

import numpy as np
import pytest
from mpi.coupling import couple, tensor

from mpiserve.errors import Code, Error, ModelError, NotFoundError

LIMIT = 60


def cubes(**settings):
    """Describe y = factor * x^3, whose Jacobian is diagonal: 3 factor x^2."""
    table = {"backend": "torch", "model": "models:cubes", "max_delay_us": 500_000}
    table |= {"options": {"arguments": {"version": "{version}"}}, "version": "1", "isolate": False}
    table |= {"inputs": [tensor("x", "float64", 3)], "outputs": [tensor("y", "float64", 3)]}
    return table | {"derivatives": ["vjp", "jacobian"], "max_batch_rows": 64} | settings


def check_vjp(session, factor, request):
    x, v = inputs(session)
    y, product = request.result(timeout=LIMIT)
    np.testing.assert_allclose(y, factor * x**3, rtol=1e-14)
    np.testing.assert_allclose(product, v * 3 * factor * x**2, rtol=1e-14)


def inputs(session):
    x = np.linspace(1, 2, 12).reshape(4, 3) + session.comm.rank
    return x, x[::-1].copy()


@pytest.mark.roles(simulation=2, inference=1)
@pytest.mark.timeout(120)
def test_ranks_share_batches_and_a_reload_changes_both(world):
    def simulate(session):
        net, vjp, comm = session.service("net"), session.service("net.vjp"), session.comm
        x, v = inputs(session)
        comm.Barrier()  # from now on a batch waits for both
        request = vjp.submit(x, v)
        check_vjp(session, 1, request)
        assert request.stats["batch_requests"] == 2, "both ranks are in one batch"
        blocks = net.jacobian(x, timeout=LIMIT).dy_dx
        np.testing.assert_allclose(blocks, np.einsum("ri,ij->rij", 3 * x**2, np.eye(3)))
        with pytest.raises(NotFoundError, match=r"net\.jvp"):
            net.jvp(x, v)
        with pytest.raises(Error, match="reload or unload 'net'") as caught:
            session.reload("net.vjp", "2", timeout=LIMIT)
        assert caught.value.code == Code.ESTATE
        comm.Barrier()
        if comm.rank == 0:
            reload(session)
        comm.Barrier()
        np.testing.assert_allclose(net(x), 2 * x**3)
        check_vjp(session, 2, vjp.submit(x, v))
        comm.Barrier()
        if comm.rank == 0:
            session.unload("net", timeout=LIMIT)
        comm.Barrier()
        for call in (lambda: net(x), lambda: net.vjp(x, v)):
            with pytest.raises(ModelError, match="unloaded"):
                call()

    couple(world, {"net": cubes()}, simulate)


def reload(session):
    """Reload to a version that one derivative alone cannot have, then to another."""
    x, v = inputs(session)
    with pytest.raises(ModelError, match="torch cannot follow"):
        session.reload("net", "0", timeout=LIMIT)
    check_vjp(session, 1, session.service("net.vjp").submit(x, v))
    session.reload("net", "2", timeout=LIMIT)
