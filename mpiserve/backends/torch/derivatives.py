"""Services that answer with derivatives of a torch module, by torch's reverse mode.

For y = f(x) with the Jacobian J of each row, reverse mode (backpropagation) computes the product
v J for the cost of a few calls of f (A. Griewank and A. Walther, Evaluating Derivatives, SIAM
2008, chapter 3). The product J t is the derivative of v J by v, which is linear in v, times t
(the double backward trick of torch.autograd.functional.jvp). For 32 rows of a small network on one
core this takes a quarter to a third of the time of torch's forward mode, and torch.autograd half
of the time of torch.func, with the same results.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, prod
from typing import TYPE_CHECKING, Any

from mpiserve.backends.base import arranged, full_name
from mpiserve.backends.torch.torch_backend import TorchBackend
from mpiserve.config.derivatives import OPTIONS, Derivative, differentiable
from mpiserve.errors import Code, ModelError

if TYPE_CHECKING:
    import torch

    from mpiserve.config.tables import Tensors

    Tensor = torch.Tensor

CALLS = 8  # whose products are checked, if finite: those of warm-up, with random rows among them
CLOSE = 0.3  # times the root of eps
SEED = 13
ONCE = (
    "an operation of the model has a backward function of its own that torch cannot differentiate, "
    "which J t needs: ask for vjp or jacobian"
)
AT_ONCE = 2**16  # rows times vectors of one pass: its memory is that of so many rows


class DerivativeBackend(TorchBackend):
    """Runs a module and one derivative of it, without the engine that runs the module alone."""

    known_options = OPTIONS
    module: Differentiated
    _gradients = True

    @property
    def engine(self) -> str:
        """The class of the module that is differentiated."""
        return full_name(type(self.module.module))

    def prepare(self, module: torch.nn.Module) -> Differentiated:
        """Make a loaded module ready; only its inputs need gradients."""
        derivative = self.service.derivative
        assert derivative
        prepared = super().prepare(module)
        for parameter in prepared.parameters():
            parameter.requires_grad_(False)
        return Differentiated(prepared, derivative)

    def warmed(self) -> None:
        """Refuse what warm-up has found to be wrong, and Jacobians of rows that are not alone.

        Raises:
            ModelError: If J t is wrong, or if rows may depend on each other.
        """
        derivative = self.service.derivative
        assert derivative
        if derivative.kind == "jvp" and self.module.wrong:
            raise ModelError(Code.EMODEL, ONCE)
        if derivative.kind == "jacobian" and self.together:
            text = f"service.{derivative.name}.derivatives: a Jacobian of each row needs"
            how = 'set rows = "independent" if they are, or take "jacobian" out'
            raise ModelError(Code.EMODEL, f"{text} rows that are known to be independent; {how}")


class Differentiated:
    """Calls a module, and returns its outputs and a derivative.

    Args:
        module: The module.
        derivative: The derivative, with the signature of the module.

    Attributes:
        module: The module.
        wrong: Whether J t was found to be wrong.
    """

    wrong = False

    def __init__(self, module: Any, derivative: Derivative) -> None:
        import torch

        self.module = module
        self._torch = torch
        self._inputs, self._outputs = derivative.inputs, derivative.outputs
        self._names = [tensor.name for tensor in derivative.outputs]
        self._wrt, self._of = _positions(derivative.inputs), _positions(derivative.outputs)
        self._derivative = {"vjp": self._vjp, "jvp": self._jvp, "jacobian": self._jacobian}[
            derivative.kind
        ]
        self._counts = derivative.counts
        self._checks = CALLS
        self._batched = True  # torch can take many vectors through the module at once
        self._transposed = _values(derivative.inputs) < _values(derivative.outputs)

    def parameters(self) -> Any:
        """Return the parameters of the module."""
        return self.module.parameters()

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        """Return the outputs of the module, then those of the derivative.

        Args:
            *tensors: The inputs of the module, then the vectors or tangents, then the counts of
                a ragged batch, which the module gets too.

        Raises:
            ModelError: If the module computes an output in a way that torch cannot follow.
        """
        count, end = len(self._inputs), len(tensors) - self._counts
        inputs, given = list(tensors[:count]), tensors[count:end]
        for i in self._wrt:
            # A tensor of its own: gradients of one call are none of the next one's.
            inputs[i] = inputs[i].detach().requires_grad_()
        with self._torch.enable_grad():
            outputs = arranged(self.module(*inputs, *tensors[end:]), self._names, "outputs")
            of = [self._followed(i, outputs[i], inputs) for i in self._of]
            products = self._derivative(of, [inputs[i] for i in self._wrt], given)
        return [*(output.detach() for output in outputs), *products]

    def _followed(self, i: int, output: Tensor, inputs: list[Tensor]) -> Tensor:
        """Return an output that depends on inputs, with derivatives of zero if one has no rows.

        A model may return a constant for a graph without edges.
        """
        if output.requires_grad:
            return output
        if all(tensor.numel() for tensor in inputs):
            raise ModelError(Code.EMODEL, _lost(self._names[i]))
        nothing = [inputs[j][:0].sum().to(output.dtype) for j in self._wrt]
        return output + sum(nothing)

    def _vjp(self, of: list[Tensor], wrt: list[Tensor], vectors: Sequence[Tensor]) -> list[Tensor]:
        pairs = zip(vectors, of, strict=True)
        like = [vector.to(output.dtype) for vector, output in pairs]
        found = self._torch.autograd.grad(of, wrt, like, allow_unused=True)
        self._check_reached(found)
        return [self._filled(*pair) for pair in zip(found, wrt, strict=True)]

    def _jvp(self, of: list[Tensor], wrt: list[Tensor], tangents: Sequence[Tensor]) -> list[Tensor]:
        if self.wrong:
            raise ModelError(Code.EMODEL, ONCE)
        vectors, products = self._linear(of, wrt)
        return self._times(tangents, vectors, products, of, wrt)

    def _times(
        self,
        tangents: Sequence[Tensor],
        vectors: list[Tensor],
        products: Any,
        of: list[Tensor],
        wrt: list[Tensor],
    ) -> list[Tensor]:
        reached = [i for i, product in enumerate(products) if product is not None]
        like = [tangents[i].to(wrt[i].dtype) for i in reached]
        linear = [products[i] for i in reached]
        grad = self._torch.autograd.grad
        found = grad(linear, vectors, like, retain_graph=True, allow_unused=True)
        return [self._filled(*pair) for pair in zip(found, of, strict=True)]

    def _linear(self, of: list[Tensor], wrt: list[Tensor]) -> tuple[list[Tensor], Any]:
        """Return vectors v, and the products v J as functions of them."""
        vectors = [self._torch.zeros_like(output, requires_grad=True) for output in of]
        grad = self._torch.autograd.grad
        products = grad(of, wrt, vectors, create_graph=True, allow_unused=True)
        self._check_reached(products)
        if not all(product is None or product.requires_grad for product in products):
            raise ModelError(Code.EMODEL, ONCE)
        if self._checks:
            self._check_products(of, wrt, vectors, products)
        return vectors, products

    def _check_products(
        self, of: list[Tensor], wrt: list[Tensor], vectors: list[Tensor], products: Any
    ) -> None:
        """Compare (v J) t with v (J t): an operation's own backward may hide a part of J t.

        Raises:
            ModelError: If they differ.
        """
        random = self._torch.Generator().manual_seed(SEED)  # the model may draw from torch's own
        v, t = (self._random(tensors, random) for tensors in (of, wrt))
        grad = self._torch.autograd.grad
        left = grad(of, wrt, v, retain_graph=True, allow_unused=True)
        right = self._times(t, vectors, products, of, wrt)
        terms = [(a * b).double() for a, b in zip(left, t, strict=True) if a is not None]
        others = [(a * b).double() for a, b in zip(right, v, strict=True)]
        scale = sum(float(term.abs().sum()) for term in (*terms, *others))
        apart = abs(float(sum(term.sum() for term in terms) - sum(term.sum() for term in others)))
        close = CLOSE * max(self._torch.finfo(tensor.dtype).eps for tensor in (*of, *wrt)) ** 0.5
        if not 0 < scale < inf:  # it tells nothing: the next call is checked
            return
        self._checks -= 1
        if apart > close * scale:
            self.wrong = True
            raise ModelError(Code.EMODEL, ONCE)

    def _random(self, like: list[Tensor], random: torch.Generator) -> list[Tensor]:
        made = [self._torch.randn(tensor.shape, generator=random) for tensor in like]
        return [new.to(tensor) for new, tensor in zip(made, like, strict=True)]

    def _jacobian(self, of: list[Tensor], wrt: list[Tensor], _given: Any) -> list[Tensor]:
        """Return the blocks, row by row of each output, or column by column if these are fewer."""
        if self._transposed:
            try:
                return self._by_columns(of, wrt)
            except (RuntimeError, ModelError):
                # An operation lacks second derivatives, or hides them.
                self._transposed = False
        blocks = []
        for output in of:
            for block, x in zip(self._blocks(output, wrt), wrt, strict=True):
                moved = block.movedim(0, 1)  # [rows, values of the output, ...]
                blocks.append(moved.reshape(*output.shape, *x.shape[1:]))
        return blocks

    def _by_columns(self, of: list[Tensor], wrt: list[Tensor]) -> list[Tensor]:
        vectors, products = self._linear(of, wrt)
        columns = [
            self._blocks(product, vectors)
            if product is not None
            else [output.new_zeros(x[0].numel(), *output.shape) for output in of]
            for x, product in zip(wrt, products, strict=True)
        ]
        return [
            column[i].movedim(0, -1).reshape(*of[i].shape, *x.shape[1:])
            for i in range(len(of))
            for column, x in zip(columns, wrt, strict=True)
        ]

    def _blocks(self, output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
        """Return the derivatives of each value of an output: [values, rows, ...] by input.

        One pass is for all rows: they are independent, so no row adds to another's result.
        """
        torch, rows, shape = self._torch, len(output), output.shape[1:]
        count = shape.numel()
        unit = torch.eye(count, dtype=output.dtype, device=output.device)
        unit = unit.reshape(count, 1, *shape).expand(count, rows, *shape)
        parts = [self._pass(output, inputs, part) for part in unit.split(max(1, AT_ONCE // rows))]
        return [torch.cat(part) for part in zip(*parts, strict=True)]

    def _pass(self, output: Tensor, inputs: list[Tensor], vectors: Tensor) -> list[Tensor]:
        """Take vectors [many, rows, ...] through the module, all at once if torch can."""
        if self._batched:
            try:
                return self._grads(output, inputs, vectors, True)
            except RuntimeError:  # an operation that torch cannot batch
                self._batched = False
        each = [self._grads(output, inputs, vector, False) for vector in vectors]
        return [self._torch.stack(part) for part in zip(*each, strict=True)]

    def _grads(
        self, output: Tensor, inputs: list[Tensor], vector: Tensor, many: bool
    ) -> list[Tensor]:
        found = self._torch.autograd.grad(
            output, inputs, vector, retain_graph=True, allow_unused=True, is_grads_batched=many
        )
        self._check_reached(found)
        like = [x.expand(len(vector), *x.shape) if many else x for x in inputs]
        return [self._filled(*pair) for pair in zip(found, like, strict=True)]

    def _filled(self, found: Tensor | None, like: Tensor) -> Tensor:
        return self._torch.zeros_like(like) if found is None else found.detach()

    def _check_reached(self, found: Sequence[Tensor | None]) -> None:
        """Refuse outputs that depend on no input, as a copy of the module's own does not."""
        if all(tensor is None for tensor in found):
            raise ModelError(Code.EMODEL, _lost("', '".join(self._names)))


def _lost(name: str) -> str:
    text = f"output '{name}': torch cannot follow how it depends on the inputs"
    return f"{text}; no derivative passes no_grad, detach, numpy, or a constant"


def _positions(tensors: Tensors) -> list[int]:
    floats = differentiable(tensors)
    return [i for i, tensor in enumerate(tensors) if tensor in floats]


def _values(tensors: Tensors) -> int:
    """Count the values of a row that have derivatives."""
    return sum(prod(tensor.shape[1:]) for tensor in differentiable(tensors))
