"""Advection and diffusion of temperature, fuel and oxidizer on a Cartesian grid of ranks."""

import math

import kinetics
import numpy as np
from mpi4py import MPI

LENGTH = (16.0, 12.0)  # of the domain in x and y, in flame thicknesses
LEWIS = (1.0, 1.2, 1.0)  # temperature, fuel (heavy, so slow to diffuse), oxidizer
INFLOW = 0.5  # mean velocity along x, in flame speeds
SWIRL = 2.5  # largest velocity of the vortices
VORTICES = (2, 1)  # wave numbers of the vortex array along x and y
EQUIVALENCE_RATIO = 0.95  # fuel over what the oxidizer can burn, mean at the inflow
STRATIFICATION = 0.25  # how far it varies about its mean, along y
FRONT = 11.0  # where the flame starts


class Grid:
    """One rank's block of a grid, and the exchange of its halo of one cell."""

    def __init__(self, comm: MPI.Comm, nx: int, ny: int):
        # More blocks along y than along x: the front runs along y, so all ranks share it.
        blocks = sorted(MPI.Compute_dims(comm.size, 2), reverse=True)
        if blocks[0] > ny or blocks[1] > nx:
            raise ValueError(f"a grid of {nx} x {ny} cells is too small for {comm.size} ranks")
        self.comm = comm.Create_cart(blocks, periods=[True, False], reorder=False)
        self.shape = (ny, nx)
        self.spacing = (LENGTH[0] / nx, LENGTH[1] / ny)
        self.rows, self.columns = self.block(self.comm.rank)
        self._neighbours = [rank for axis in (0, 1) for rank in self.comm.Shift(axis, 1)]
        ny_local, nx_local = self.local_shape
        lengths = (nx_local, nx_local, ny_local, ny_local)
        self._outgoing = [np.empty((3, length)) for length in lengths]
        self._incoming = [np.empty((3, length)) for length in lengths]

    @property
    def local_shape(self) -> tuple[int, int]:
        """Cells of this rank along y and x."""
        return (self.rows.stop - self.rows.start, self.columns.stop - self.columns.start)

    def block(self, rank: int) -> tuple[slice, slice]:
        """Return the rows and columns of the grid that `rank` owns."""
        axes = zip(self.comm.Get_coords(rank), self.comm.dims, self.shape, strict=True)
        return tuple(slice(i * n // parts, (i + 1) * n // parts) for i, parts, n in axes)

    def centers(self) -> tuple[np.ndarray, np.ndarray]:
        """Return x and y of this rank's cell centres, halo included."""
        dx, dy = self.spacing
        x = (np.arange(self.columns.start - 1, self.columns.stop + 1) + 0.5) * dx
        y = (np.arange(self.rows.start - 1, self.rows.stop + 1) + 0.5) * dy
        return x, y

    def exchange(self, field: np.ndarray) -> None:
        """Fill the halo of `field` from the neighbours; boundaries in x stay as they are."""
        edges = (field[:, 1, 1:-1], field[:, -2, 1:-1], field[:, 1:-1, 1], field[:, 1:-1, -2])
        halos = (field[:, 0, 1:-1], field[:, -1, 1:-1], field[:, 1:-1, 0], field[:, 1:-1, -1])
        # Cells sent to side s arrive from the opposite side, s ^ 1, of the neighbour.
        requests = [
            self.comm.Irecv(buffer, rank, tag=side ^ 1)
            for side, (buffer, rank) in enumerate(
                zip(self._incoming, self._neighbours, strict=True)
            )
        ]
        for side, rank in enumerate(self._neighbours):
            self._outgoing[side][...] = edges[side]
            requests.append(self.comm.Isend(self._outgoing[side], rank, tag=side))
        MPI.Request.Waitall(requests)
        for side, rank in enumerate(self._neighbours):
            if rank != MPI.PROC_NULL:
                halos[side][...] = self._incoming[side]

    def gather(self, field: np.ndarray) -> np.ndarray | None:
        """Return fields `[n, ny, nx]` of the whole grid on rank 0, None elsewhere."""
        if self.comm.rank:
            self.comm.Send(np.ascontiguousarray(field), 0)
            return None
        whole = np.empty((len(field), *self.shape))
        whole[:, self.rows, self.columns] = field
        for rank in range(1, self.comm.size):
            rows, columns = self.block(rank)
            part = np.empty((len(field), rows.stop - rows.start, columns.stop - columns.start))
            self.comm.Recv(part, rank)
            whole[:, rows, columns] = part
        return whole


def stream_function(x, y):
    """Return the stream function: a uniform flow along x and an array of vortices within it."""
    along = 2.0 * math.pi * VORTICES[0] * x / LENGTH[0]
    across = 2.0 * math.pi * VORTICES[1] / LENGTH[1]
    # The envelope keeps the vortices away from inflow and outflow.
    envelope = np.sin(math.pi * np.clip(x / LENGTH[0], 0.0, 1.0)) ** 2
    return INFLOW * y + SWIRL / across * envelope * np.sin(along) * np.sin(across * y)


def face_velocities(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Return the velocities through the faces of this rank's cells, exactly free of divergence."""
    (dx, dy), (ny, nx) = grid.spacing, grid.local_shape
    x = (grid.columns.start + np.arange(nx + 1)) * dx
    y = (grid.rows.start + np.arange(ny + 1)) * dy
    corners = stream_function(x[None, :], y[:, None])
    return np.diff(corners, axis=0) / dy, -np.diff(corners, axis=1) / dx


def inflow_mixture(y):
    """Return the fresh gas at the inflow, richer and leaner along y."""
    wave = np.cos(2.0 * math.pi * (y / LENGTH[1] - 0.6))
    ratio = EQUIVALENCE_RATIO + STRATIFICATION * wave
    return kinetics.mixture(kinetics.FUEL_STOICHIOMETRIC * ratio)


def initial_state(grid: Grid) -> np.ndarray:
    """Return fresh gas on the left, burnt gas on the right and a planar front between them."""
    x, y = grid.centers()
    fresh = np.broadcast_to(inflow_mixture(y)[:, :, None], (3, len(y), len(x)))
    return kinetics.burn(fresh, 0.5 * (1.0 + np.tanh(x - FRONT)))


class Transport:
    """Advect and diffuse a state `[3, ny + 2, nx + 2]` in place.

    Finite volumes with central differences (upwind where a cell's Peclet number is over 2) and
    Heun's method, in substeps so short that each stage is a weighted mean of neighbouring cells:
    transport makes no new maxima or minima, so mass fractions stay bounded.
    """

    def __init__(self, grid: Grid):
        self.comm = grid.comm
        self._grid = grid
        _, y = grid.centers()
        self._inflow = inflow_mixture(y)
        self._here, *self._weights = stencil(grid)
        self._change, self._term = np.empty((2, 3, *grid.local_shape))
        fastest = np.array([-self._here.min()])
        self.comm.Allreduce(MPI.IN_PLACE, fastest, MPI.MAX)
        # The longest substep in which no cell gives away more than it holds.
        self.stable_time = 1.0 / float(fastest[0])

    def advance(self, state: np.ndarray, duration: float) -> None:
        """Advance `state` by `duration`, in as many substeps as stability requires."""
        substeps = math.ceil(duration / self.stable_time)
        cells = state[:, 1:-1, 1:-1]
        for _ in range(substeps):
            before = cells.copy()
            self._euler(state, duration / substeps)
            self._euler(state, duration / substeps)
            cells += before
            cells *= 0.5

    def _euler(self, state: np.ndarray, duration: float) -> None:
        self._fill_halo(state)
        cells = state[:, 1:-1, 1:-1]
        neighbours = (
            state[:, 1:-1, :-2],
            state[:, 1:-1, 2:],
            state[:, :-2, 1:-1],
            state[:, 2:, 1:-1],
        )
        np.multiply(self._here, cells, out=self._change)
        for weight, neighbour in zip(self._weights, neighbours, strict=True):
            self._change += np.multiply(weight, neighbour, out=self._term)
        self._change *= duration
        cells += self._change

    def _fill_halo(self, state: np.ndarray) -> None:
        """Fill the halo from other ranks and the boundaries: inflow left, outflow right."""
        self._grid.exchange(state)
        if self._grid.columns.start == 0:
            state[:, :, 0] = self._inflow
        if self._grid.columns.stop == self._grid.shape[1]:
            state[:, :, -1] = state[:, :, -2]


def stencil(grid: Grid) -> tuple[np.ndarray, ...]:
    """Return how the rate of change depends on the cell, its west, east, south and north."""
    (dx, dy), (u, v) = grid.spacing, face_velocities(grid)
    diffusivity = 1.0 / np.array(LEWIS)[:, None, None]
    from_west, from_east = (weight / dx for weight in _face_weights(u, diffusivity / dx))
    from_south, from_north = (weight / dy for weight in _face_weights(v, diffusivity / dy))
    here = from_east[:, :, :-1] - from_west[:, :, 1:] + from_north[:, :-1] - from_south[:, 1:]
    return (
        here,
        from_west[:, :, :-1],
        -from_east[:, :, 1:],
        from_south[:, :-1],
        -from_north[:, 1:],
    )


def _face_weights(velocity, conductance):
    """Return the weights of the cells before and after each face in the flux through it."""
    before = np.maximum(0.5 * velocity + conductance, np.maximum(velocity, 0.0))
    after = np.minimum(0.5 * velocity - conductance, np.minimum(velocity, 0.0))
    return before, after
