"""Train the network of a service, or the networks of its ensemble."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpiserve.backends.base import arranged, import_object
from mpiserve.backends.torch import dtypes, saved_weights
from mpiserve.backends.torch.model_files import load_module
from mpiserve.backends.torch.torch_backend import choose_device
from mpiserve.config.trainer import TrainerConfig
from mpiserve.config.uncertainty import NAME, seen

if TYPE_CHECKING:
    import torch

    from mpiserve.config import ServiceConfig

EVALUATED = 4096  # rows that are evaluated at a time
OPTIMIZERS = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD"}
LOSSES = {"mse": "mse_loss", "l1": "l1_loss", "huber": "smooth_l1_loss"}

Rows = Mapping[str, np.ndarray]
State = dict[str, "torch.Tensor"]
Draw = Callable[[], Rows]


class DivergedError(Exception):
    """The loss, or the error, is not a finite number."""


class Networks:
    """The networks of a service in training, each with its optimizer.

    Rows are arrays by the paths "inputs/NAME" and "outputs/NAME".

    Args:
        service: The table of the service, as configured; no weights are read.
        table: How to train.
        local_rank: Which device to take.

    Attributes:
        rate: The learning rate; set it by `set_rate`.
        steps: The training steps made.
        scales: By output: what an error counts in, [...] of a row.
    """

    def __init__(self, service: ServiceConfig, table: TrainerConfig, local_rank: int = 0) -> None:
        import torch

        self._torch, self._service, self._table = torch, service, table
        torch.set_num_threads(table.threads)
        self._device = choose_device(local_rank)
        uncertainty = service.uncertainty
        several = uncertainty.weights if uncertainty and uncertainty.method == "ensemble" else ()
        self._modules = [self._made(table.seed + i) for i in range(1 + len(several))]
        self._scratch = self._made(table.seed)
        kind = getattr(torch.optim, OPTIMIZERS[table.optimizer])
        self._optimizers = [kind(m.parameters(), lr=table.rate) for m in self._modules]
        self.rate, self.steps = table.rate, 0
        self._step = import_object(table.step, service.folder) if table.step else self._ready
        self._inputs = [tensor.name for tensor in service.inputs]
        self._outputs = [tensor.name for tensor in seen(service)]
        says = uncertainty is not None and uncertainty.method == "model"
        self._results = [*self._outputs, NAME] if says else self._outputs
        self.scales: dict[str, np.ndarray] = {}

    def _made(self, seed: int) -> torch.nn.Module:
        self._torch.manual_seed(seed)
        return load_module(self._service.of_version(), weights=False).to(self._device)

    # ---- training

    def fit_scales(self, rows: Rows) -> None:
        """Have modules with a method `fit_scales` scale their tensors by rows."""
        inputs = [self._tensor(rows[f"inputs/{name}"]) for name in self._inputs]
        outputs = [self._tensor(rows[f"outputs/{name}"]) for name in self._outputs]
        for module in self._modules:
            fit: Any = getattr(module, "fit_scales", None)
            if fit is not None:
                fit(inputs, outputs)

    def measure(self, rows: Rows) -> None:
        """Let errors count in units of the standard deviations of these rows' outputs."""
        for name in self._outputs:
            values = rows[f"outputs/{name}"]
            varies = np.ptp(values, 0) > 0  # the deviation of equal values may be rounding
            self.scales[name] = np.where(varies, values.std(0, dtype=np.float64), 1.0)

    def train(self, steps: int, draw: Draw) -> float:
        """Make training steps; return the mean loss.

        Raises:
            DivergedError: If a loss is not finite.
        """
        total = 0.0
        for module in self._modules:
            module.train()
        for _ in range(steps):
            for module, optimizer in zip(self._modules, self._optimizers, strict=True):
                made: Any = self._step(module, optimizer, *self._sides(draw()))
                loss = float(made.detach() if hasattr(made, "detach") else made)
                if not isfinite(loss):
                    raise DivergedError(f"the loss is {loss} in step {self.steps}")
                total += loss
            self.steps += 1
        return total / steps / len(self._modules)

    def _ready(
        self, module: torch.nn.Module, optimizer: Any, inputs: State, outputs: State
    ) -> torch.Tensor:
        """Make the ready training step."""
        optimizer.zero_grad(set_to_none=True)
        measure = getattr(self._torch.nn.functional, LOSSES[self._table.loss])
        losses = []
        for name, result in self._called(module, inputs).items():
            scale = self._tensor(self.scales[name]).to(result.dtype)
            losses.append(measure(result / scale, outputs[name].to(result.dtype) / scale))
        loss = self._torch.stack(losses).mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    def _called(self, module: torch.nn.Module, inputs: State) -> State:
        wanted = dtypes.own(module)
        converted = [dtypes.in_arithmetic(inputs[n].dtype, wanted) for n in self._inputs]
        given = [inputs[n].to(kind) for n, kind in zip(self._inputs, converted, strict=True)]
        results = arranged(module(*given), self._results, "outputs")
        return dict(zip(self._outputs, results[: len(self._outputs)], strict=True))

    def _sides(self, rows: Rows) -> tuple[State, State]:
        inputs = {name: self._tensor(rows[f"inputs/{name}"]) for name in self._inputs}
        return inputs, {name: self._tensor(rows[f"outputs/{name}"]) for name in self._outputs}

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return self._torch.as_tensor(array, device=self._device)

    def set_rate(self, rate: float) -> None:
        """Train at this rate from now on."""
        self.rate = rate
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate

    # ---- errors

    def error(self, rows: Rows, states: Sequence[State] | None = None) -> float:
        """Return the error of what the networks answer together.

        It is the root mean square of all values' errors, in units of `scales`.

        Args:
            rows: Pairs.
            states: The weights of the networks; by default those in training.
        """
        modules = self._modules if states is None else None
        total, values = 0.0, 0
        length = len(next(iter(rows.values())))
        for begin in range(0, length, EVALUATED):
            some = {name: array[begin : begin + EVALUATED] for name, array in rows.items()}
            for name, found in self._means(some, modules, states or ()).items():
                wanted = some[f"outputs/{name}"].astype(np.float64)
                differs = (found - wanted) / self.scales[name]
                total += float(np.square(differs).sum())
                values += differs.size
        return float(np.sqrt(total / max(1, values)))

    def error_of_mean(self, rows: Rows, known: Rows) -> float:
        """Return the error over rows of an answer that is the mean of other rows."""
        total, values = 0.0, 0
        for name in self._outputs:
            wanted = rows[f"outputs/{name}"].astype(np.float64)
            mean = known[f"outputs/{name}"].mean(0, dtype=np.float64)
            total += float(np.square((mean - wanted) / self.scales[name]).sum())
            values += wanted.size
        return float(np.sqrt(total / max(1, values)))

    def _means(
        self, rows: Rows, modules: Sequence[torch.nn.Module] | None, states: Sequence[State]
    ) -> dict[str, np.ndarray]:
        """Return the mean answer of the networks, as an ensemble answers."""
        inputs, _ = self._sides(rows)
        every: dict[str, list[np.ndarray]] = {name: [] for name in self._outputs}
        for i in range(len(modules or states)):
            module = modules[i] if modules else self._with(states[i])
            with self._torch.no_grad():
                for name, result in self._called(module.eval(), inputs).items():
                    every[name].append(result.double().cpu().numpy())
        return {name: np.mean(found, axis=0) for name, found in every.items()}

    def _with(self, state: State) -> torch.nn.Module:
        self._scratch.load_state_dict(state)
        return self._scratch

    def between_rows(self, rows: Rows) -> float:
        """Return by how much answers differ with the other rows of a call, in units of `scales`."""
        together = self._means(rows, self._modules, ())
        alone = [
            self._means({n: a[i : i + 1] for n, a in rows.items()}, self._modules, ())
            for i in range(len(next(iter(rows.values()))))
        ]
        return max(
            float(np.abs((np.concatenate([one[n] for one in alone]) - t) / self.scales[n]).max())
            for n, t in together.items()
        )

    # ---- weights and their files

    def states(self) -> list[State]:
        """Return copies of the weights, on the CPU."""
        return [
            {name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}
            for module in self._modules
        ]

    def files(self, version: str) -> list[Path]:
        """Return the files of a version, one for each network."""
        served = self._service.of_version(version)
        table = served.uncertainty
        names = [served.options["weights"], *(table.weights if table else ())]
        return [served.folder / name for name in names]

    def write(self, version: str, states: Sequence[State], about: Mapping[str, str]) -> None:
        """Write the files of a version."""
        for path, state in zip(self.files(version), states, strict=True):
            save(path, state, about)

    def read(self, version: str) -> list[State]:
        """Read the weights of a version.

        Raises:
            ModelError: If a file is missing, or does not fit.
        """
        found = []
        for path in self.files(version):
            saved_weights.load(self._service, self._scratch, path)
            state = self._scratch.state_dict()
            found.append({name: tensor.detach().cpu().clone() for name, tensor in state.items()})
        return found

    # ---- checkpoints

    def checkpoint(self) -> State:
        """Return all that training goes on from, in one table."""
        parts = [_flat(f"network.{i}", state) for i, state in enumerate(self.states())]
        parts += [_flat(f"optimizer.{i}", _moments(o)) for i, o in enumerate(self._optimizers)]
        scales = {name: self._torch.from_numpy(array) for name, array in self.scales.items()}
        return dict(chain.from_iterable(p.items() for p in (*parts, _flat("scale", scales))))

    def adopt(self, states: Sequence[State]) -> None:
        """Train these weights from now on."""
        for module, state in zip(self._modules, states, strict=True):
            module.load_state_dict(state)

    def restore(self, table: State, rate: float, steps: int) -> None:
        """Go on from a checkpoint of the same networks.

        Raises:
            RuntimeError, KeyError, ValueError: If they are others.
        """
        for i, (module, optimizer) in enumerate(zip(self._modules, self._optimizers, strict=True)):
            module.load_state_dict(_part(table, f"network.{i}"))
            _set_moments(optimizer, _part(table, f"optimizer.{i}"))
        self.scales = {name: t.numpy().copy() for name, t in _part(table, "scale").items()}
        self.steps = steps
        self.set_rate(rate)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path to write to, which takes its name when it is complete, or is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    try:
        yield fresh
        fresh.replace(path)
    finally:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)


def save(path: Path, state: State, about: Mapping[str, str]) -> None:
    """Write a safetensors file, which has its name when it is complete.

    Raises:
        OSError: If it cannot be written, as where the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    own = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}
    with replacing(path) as fresh:
        try:
            save_file(own, fresh, metadata=dict(about))
        except SafetensorError as error:
            raise OSError(f"{path.name} cannot be written ({error})") from None


def load(path: Path) -> tuple[State, dict[str, str]]:
    """Read a safetensors file, and what it says of itself.

    Raises:
        OSError: If it is not there, or none.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise OSError(f"{path.name} is broken or cut off ({error})") from None


def _flat(prefix: str, state: Mapping[str, torch.Tensor]) -> State:
    return {f"{prefix}.{name}": tensor for name, tensor in state.items()}


def _part(table: State, prefix: str) -> State:
    start = f"{prefix}."
    return {n.removeprefix(start): tensor for n, tensor in table.items() if n.startswith(start)}


def _moments(optimizer: Any) -> State:
    """Return copies of the tensors of an optimizer, by number of the parameter and name."""
    import torch

    return {
        f"{number}.{name}": value.detach().cpu().clone()
        for number, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
        if isinstance(value, torch.Tensor)
    }


def _set_moments(optimizer: Any, moments: State) -> None:
    states: dict[int, State] = {}
    for key, value in moments.items():
        number, _, name = key.partition(".")
        # The optimizer may keep what it is given, and change it in place.
        states.setdefault(int(number), {})[name] = value.clone()
    optimizer.load_state_dict(optimizer.state_dict() | {"state": states})
