"""Call a model to find out whether rows are independent, and whether it changes its inputs.

There is no MPI and no configuration, and the random rows are the same at every start.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from mpiserve.failure import check_interrupt, describe

ROWS = 40  # rows to compare: more than models pad to, or split at
FEW = 8  # the same for large rows
LARGE = 64 << 10  # bytes from which on a row is large
CLOSE = 100  # times eps and the largest magnitude: differences that rounding may cause
COARSE = 8, 0.01  # times eps, and an addend: the upper limit of these, where eps is large
GROSS = 1e-3  # of the largest magnitude: more than rounding in float32 or better
BLOCK = 1 << 20  # bytes to compare at a time
AGAIN, ENOUGH = 8, 64  # calls with the same rows at most, and numbers of all answers together
SEED = 13
RANDOM = "two calls with the same rows differ: the model is random, or has a state"
EPS = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}
EPS |= {"complex64": EPS["float32"], "complex128": EPS["float64"]}
# The factor of normally distributed numbers (0: uniform from 0 to 1), and the number of distinct
# integers. Integers are 0 or 1, since larger ones may be beyond the end of a lookup table.
KINDS = ((1.0, 2), (0.0, 2), (100.0, 2), (1.0, 1), (0.0, 1))

Arrays = tuple[np.ndarray, ...]
Run = Callable[[Arrays], Sequence[np.ndarray]]
Call = Callable[..., Sequence[np.ndarray]]  # takes rows, and optionally a number: see Calls


class Calls:
    """Calls a model with the arrays of a batch, and records what it does to them.

    Args:
        run: Runs the model; it must not keep an array itself.
        writable: Whether the arrays are writable.

    Attributes:
        changed: Whether the model has written to an input.
        kept: Whether the model has kept an input, or a view of one.
    """

    def __init__(self, run: Run, writable: bool = False) -> None:
        self._run = run
        self._writable = writable
        self.changed = self.kept = False

    def __call__(self, rows: Arrays, count: int = 0) -> list[np.ndarray]:
        """Call the model with a copy of the rows, repeated up to `count` rows if given.

        Returns:
            The results, valid until the next call.
        """
        count = count or len(rows[0])
        try:
            return self._call(rows, count)
        except ValueError as error:
            if self._writable or "read-only" not in str(error):
                raise
        self.changed = self._writable = True
        return self._call(rows, count)

    def _call(self, rows: Arrays, count: int) -> list[np.ndarray]:
        rows = tuple(_grown(array, count) for array in rows)
        given = tuple(_copy(array, count, self._writable) for array in rows)
        owners = [weakref.ref(array.base) for array in given]
        results = [_apart(result, given) for result in self._run(given)]
        pairs = zip(given, rows, strict=True)
        self.changed = self.changed or not all(_repeats(*pair) for pair in pairs)
        del given, pairs
        self.kept = self.kept or _alive(owners)
        return results


def _copy(array: np.ndarray, rows: int, writable: bool) -> np.ndarray:
    """Copy rows into new memory, which numpy makes the base of all views of the copy."""
    memory = np.empty(rows * array[:1].nbytes, np.uint8)
    view = memory.view(array.dtype).reshape(rows, *array.shape[1:])
    for part in blocks(view, len(array)):
        part[:] = array[: len(part)]
    view.flags.writeable = writable
    return view


def _repeats(copy: np.ndarray, array: np.ndarray) -> bool:
    return all(_identical(part, array[: len(part)]) for part in blocks(copy, len(array)))


def _apart(result: np.ndarray, given: Arrays) -> np.ndarray:
    return result.copy() if any(np.may_share_memory(result, array) for array in given) else result


def _grown(array: np.ndarray, rows: int) -> np.ndarray:
    """Repeat the rows of an array, since copies of a few bytes at a time are slow."""
    times = min(-(-rows // len(array)), BLOCK // array.nbytes)
    return np.concatenate([array] * times) if times > 1 else array


def blocks(array: np.ndarray, rows: int) -> Iterator[np.ndarray]:
    """Cut an array into parts of `rows` rows; the last one may have fewer."""
    return (array[begin : begin + rows] for begin in range(0, len(array), rows))


def _bytes(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _identical(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(_bytes(a), _bytes(b))


def _alive(owners: Sequence[weakref.ref[Any]]) -> bool:
    if all(owner() is None for owner in owners):
        return False
    gc.collect()  # a reference cycle does not count as keeping an input
    return any(owner() is not None for owner in owners)


class Finding(NamedTuple):
    """Whether the results of a row depend on the other rows of the batch.

    Attributes:
        why: The evidence that they do, or why it is unknown; "" if they do not.
        proven: Whether they do.
        gross: Whether the difference is larger than rounding can explain.
    """

    why: str = ""
    proven: bool = False
    gross: bool = False


class Probe:
    """Compares a model's results of the same rows in different batches.

    Args:
        call: Runs the model: a `Calls` object, or a function like it.
        names: The names of the outputs, for texts.
        eps: The eps of the coarsest arithmetic of the model.

    Attributes:
        finding: The finding so far.
    """

    def __init__(self, call: Call, names: Sequence[str], eps: float) -> None:
        self._call = call
        self._names = names
        self._eps = eps
        self._rows: Arrays = ()
        self._whole: Sequence[np.ndarray] = ()
        self._random = False  # whether the model is random or has a state
        self.finding = Finding()

    def find(self, candidates: Iterator[Arrays]) -> Finding:
        """Compare batches of the first candidate rows that are informative.

        All batches are run, whatever is found, so that ranks that run a model together do the
        same calls.
        """
        why = self._choose(candidates)
        if not self._rows:
            self.finding = Finding(why)
            return self.finding
        every = np.arange(len(self._rows[0]))
        self._compare(_mixed(every), "in another order", True)
        self._compare_again(every)
        for how, index in _pieces(every):
            self._compare(index, how, True)
        if why and not self.finding.why:
            self.finding = Finding(why)
        return self.finding

    def repeat(self, rows: int) -> bool:
        """Compare a batch of `rows` rows, which repeats the rows of `find`.

        Returns:
            Whether the model ran.
        """
        if not self._rows:
            return False
        try:
            results = self._call(self._rows, rows)
        except BaseException as error:
            check_interrupt()
            self._see(f"it fails on {rows} random rows: {describe(error)}", False)
            return False
        for name, whole, result in zip(self._names, self._whole, results, strict=True):
            many = _grown(whole, rows)
            for part in blocks(result, len(many)):
                text, gross = _differ(many[: len(part)], part, whole, self._eps)
                self._see(_say(name, text, f"among {rows}"), True, gross)
        return True

    def _choose(self, candidates: Iterator[Arrays]) -> str:
        """Keep the rows whose results are most informative; say what is missing in them."""
        most, why = 0, ""
        for rows in candidates:
            try:
                results = self._call(rows)
            except BaseException as error:
                check_interrupt()
                why = why or f"it fails on random rows: {describe(error)}"
                continue
            much, lacks = _informative(results)
            if much > most:
                most, why, self._rows = much, lacks, rows
                self._whole = [result.copy() for result in results]
            if not lacks:
                break
        return why

    def _compare_again(self, every: np.ndarray) -> None:
        """Run all rows once more, after other batches, to detect a model that is random."""
        ordered, self.finding = self.finding, Finding()
        self._compare(every, "again", False)
        self._random = bool(self.finding.why)
        # Without the numbers, which differ at each start.
        self.finding = Finding(RANDOM) if self._random else ordered

    def _compare(self, index: np.ndarray, how: str, proves: bool) -> None:
        """Compare the results of some rows with their results in the whole batch."""
        rows = tuple(array[index] for array in self._rows)
        try:
            results = self._call(rows)
        except BaseException as error:
            check_interrupt()
            plural = "s" if len(index) > 1 else ""
            self._see(f"it fails on {len(index)} row{plural}: {describe(error)}", False)
            return
        for name, whole, result in zip(self._names, self._whole, results, strict=True):
            text, gross = _differ(whole[index], result, whole, self._eps)
            self._see(_say(name, text, how), proves, gross)

    def _see(self, why: str, proves: bool, gross: bool = False) -> None:
        """Keep the strongest finding: the first gross proof, else the first proof or doubt."""
        known = self.finding
        more = proves and not self._random and (proves, gross) > (known.proven, known.gross)
        if why and (not known.why or more):
            self.finding = Finding(why, proves, proves and gross)


def unlike(
    call: Call,
    candidates: Iterator[Arrays],
    between: Callable[[], object],
    names: Sequence[str],
    eps: float,
) -> tuple[str, str]:
    """Call a model again with the first candidate rows that it takes, and with others in between.

    Answers of few numbers may be equal by chance: then it is called more often, and as often
    whatever it answers, so that ranks that run a model together do the same calls.

    Args:
        call: Runs the model.
        candidates: Rows.
        between: Runs it on other rows, and raises nothing.
        names: The names of the outputs, for texts.
        eps: The eps of the coarsest arithmetic of the model.

    Returns:
        How the answers differ, or ""; why that is unknown, or "".
    """
    why = ""
    for rows in candidates:
        try:
            before, found = [result.copy() for result in call(rows)], ""
            for _ in range(max(1, min(AGAIN, ENOUGH // sum(map(np.size, before))))):
                between()
                for name, a, b in zip(names, before, call(rows), strict=True):
                    found = found or _say(name, _differ(a, b, a, eps)[0], "in another call")
        except BaseException as error:
            check_interrupt()
            why = why or f"it fails on random rows: {describe(error)}"
            continue
        return found, ""
    return "", why


def _say(name: str, text: str, how: str) -> str:
    return f"output '{name}' {text} for the same rows {how}" if text else ""


def _pieces(every: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield parts of the rows: single rows, and the two sides of a cut."""
    cut = max(1, len(every) // 3)
    yield "alone", every[:1]
    yield "without those before them", every[cut:]
    yield "without those behind them", every[:cut]
    yield "alone", every[-1:]


def _mixed(every: np.ndarray) -> np.ndarray:
    """Return another order; a random order of few rows might be the same."""
    return np.random.default_rng(SEED).permutation(every) if len(every) > 3 else every[::-1]


def _differ(
    expected: np.ndarray, result: np.ndarray, whole: np.ndarray, eps: float
) -> tuple[str, bool]:
    """Describe a difference of results, or "" within rounding; and whether it is gross."""
    if expected.dtype.name not in EPS:
        wrong = int((expected != result).sum())
        return f"differs in {wrong} of {result.size} numbers" if wrong else "", True
    a, b, every = (reals(array) for array in (expected, result, whole))
    finite = np.isfinite(a) & np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return "has other numbers that are not finite", True
    largest = max(np.abs(x[np.isfinite(x)]).max(initial=0.0) for x in (every, b))
    far = np.abs(a[finite] - b[finite]).max(initial=0.0)
    eps = max(eps, EPS[expected.dtype.name])
    near = min(CLOSE * eps, COARSE[0] * eps + COARSE[1]) * largest
    text = f"differs by {far:.3g} (the largest is {largest:.3g})" if far > near else ""
    return text, bool(far > GROSS * largest)


def reals(array: np.ndarray) -> np.ndarray:
    """Return floating numbers as float64; a complex number is its two parts."""
    if array.dtype.kind == "c":
        array = np.stack((array.real, array.imag), -1)
    return np.asarray(array, np.float64)


def _informative(results: Sequence[np.ndarray]) -> tuple[int, str]:
    """Rate from 1 to 3 how informative results are, and say what is missing."""
    floats = [reals(x) for x in results if x.dtype.name in EPS]
    if not all(np.isfinite(x).any() for x in floats):
        return 1, "its results on random rows are not finite"
    if all(_identical(x[1:], x[:-1]) for x in results):
        return 2, "its results are the same on all random rows"
    return 3, ""


def size(limit: int, row_bytes: int) -> int:
    """Choose how many rows to compare, at most `limit`."""
    return min(limit, FEW if row_bytes > LARGE else ROWS)


def random_rows(like: Sequence[np.ndarray]) -> Iterator[Arrays]:
    """Yield random rows of several kinds, with the shapes and dtypes of `like`."""
    floats = [array.dtype.name in EPS for array in like]
    for factor, integers in KINDS if any(floats) else KINDS[:1]:
        if integers == 1 and all(floats):
            return
        random = np.random.default_rng(SEED)
        yield tuple(_random(random, array, factor, integers) for array in like)


def _random(
    random: np.random.Generator, like: np.ndarray, factor: float, integers: int
) -> np.ndarray:
    if like.dtype.name in EPS:
        values = _floats(random, like.shape, factor)
        if like.dtype.kind == "c":
            values = values + 1j * _floats(random, like.shape, factor)
        return np.asarray(values, like.dtype)
    whole = random.integers(0, integers, like.shape)
    if integers > 1:  # neighbouring rows must differ
        whole.reshape(len(whole), -1)[:, 0] = np.arange(len(whole)) % integers
    return whole.astype(like.dtype)


def _floats(random: np.random.Generator, shape: tuple[int, ...], factor: float) -> np.ndarray:
    return factor * random.standard_normal(shape) if factor else random.random(shape)


def example_rows(examples: Arrays, rows: int) -> Iterator[Arrays]:
    """Yield `rows` rows of examples, repeated if there are fewer."""
    yield repeated(examples, rows)


def repeated(arrays: Arrays, rows: int) -> Arrays:
    """Make arrays of `rows` rows, which repeat the rows of `arrays`."""
    index = np.arange(rows) % len(arrays[0])
    return tuple(array[index] for array in arrays)
