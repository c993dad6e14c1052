"""Trains the model of a service, and decides which version answers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from mpiserve.backends.torch.training import DivergedError, Networks, State, replacing
from mpiserve.config import ServiceConfig
from mpiserve.config.trainer import TrainerConfig
from mpiserve.config.version import UNTRAINED
from mpiserve.errors import ModelError
from mpiserve.failure import describe
from mpiserve.learning import picture
from mpiserve.learning.pairs import Pairs
from mpiserve.learning.reservoir import LEAST_ROWS, Reservoir, Rows, count, taken
from mpiserve.learning.store import PICTURE, Store
from mpiserve.learning.versions import MEAN, Version, Versions

NEWEST = 1024  # pairs over which the running error is
LEAST_NEW = 64  # pairs since a version was published, before it is judged by them
BETWEEN_ROWS = 0.01  # deviations by which rounding may make answers of other calls differ
TAKE_S = 2.0  # of a turn in which pairs are read
DIVERGED = 5  # times in a row without a good validation between, after which training ends
BETTER = 0.99  # of the best error: less is a better one
SLOWEST, AGAIN, MORE = 0.01, 0.25, 1.05  # of the rate, of the rate, of the pairs: a rest
REFUSALS = 8  # in a row, with each of which the time to the next version doubles
DRAWN_S = 30.0  # between two pictures
POINTS = 2000  # of the progress that are kept

Say = Callable[[str, str], None]  # a level of logging, and a line
Publish = Callable[[str, str], str]  # a version and a line; why it does not answer, or ""


class Trainer:
    """Trains in turns, each of which ends soon.

    Args:
        name: Of the trainer.
        service: The service, as it is configured.
        table: How to train.
        folder: Of its checkpoints.
        captured: The folder of the capture.
        say: Logs.
        publish: Has the service answer with a version, and waits until it does.
        local_rank: Which device to take.
    """

    def __init__(
        self,
        name: str,
        service: ServiceConfig,
        table: TrainerConfig,
        folder: Path,
        captured: Path,
        say: Say,
        publish: Publish,
        local_rank: int = 0,
    ) -> None:
        self._name, self._service, self._table = name, service, table
        self._say_at, self._publish_at, self._local_rank = say, publish, local_rank
        self._store = Store(folder)
        self._pairs = Pairs(captured, service, {}, lambda text: self._say("warning", text))
        self._weights: dict[str, list[State]] = {}  # of the versions that answer, and before
        self._forget()
        self._diverged = self._stale = self._judged = self._refusals = 0
        self._best, self._rest_until = float("inf"), 0
        self._next = self._saved = self._drawn = time.monotonic()
        self._said: set[str] = set()
        self._known_error = (-1, MEAN)  # of the version that answers, on so many held-out pairs
        self._dirty = False  # whether there are pairs that are not on the disk
        self.given_up = False

    def _forget(self) -> None:
        """Begin without pairs and checkpoint."""
        self._networks = Networks(self._service, self._table, self._local_rank)
        self._reservoir: Reservoir | None = None
        self._pairs.seen = {}
        self._versions = Versions(Version(self._service.version))
        self._progress: list[dict[str, Any]] = []
        self._good: tuple[State, int] | None = None  # a checkpoint, and its steps

    def _say(self, level: str, text: str) -> None:
        self._say_at(level, f"trainer {self._name}: {text}")

    # ---- begin and end

    def begin(self) -> None:
        """Go on from what is on the disk; else from the weights of the version that answers.

        Raises:
            Error: If another job goes on from there.
        """
        self._store.lock()
        try:
            self._restore()
        except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
            text = f"it starts anew, as its checkpoint cannot be used: {describe(error)}"
            self._say("warning", text)
            self._forget()
        self._answer_again()
        self._read_weights()
        if not self._networks.steps and self._weights.get(self._versions.answering.name):
            self._networks.adopt(self._weights[self._versions.answering.name])
        self._judged = self._seen

    def _answer_again(self) -> None:
        """Have the service answer with the version that it has ended with."""
        current, wanted = self._service.version, self._versions.answering.name
        if wanted == current:
            return
        if why := self._publish_at(wanted, f"goes on with {wanted}"):
            self._say("error", f"{wanted} cannot be loaded again, {current} answers: {why}")
            self._versions = Versions(Version(current), None, self._versions.published)

    def _restore(self) -> None:
        if found := self._store.pairs():
            arrays, seen = found
            rows = {n.removeprefix("new/"): a for n, a in arrays.items() if n.startswith("new/")}
            if not self._pairs.fits(rows):
                raise ValueError("its pairs have other tensors than the service")
            self._make_reservoir(rows).restore(arrays)
            self._pairs.seen = seen
        saved = self._store.checkpoint()
        if saved is None:
            return
        table, about = saved
        self._networks.restore(table, about["rate"], about["steps"])
        self._versions = Versions.restored(about["versions"])
        self._progress = about["progress"]
        self._good = (table, about["steps"])
        text = f"it goes on from step {about['steps']}, {self._seen} pairs and version"
        self._say("info", f"{text} {self._versions.answering.name}")

    def _read_weights(self) -> None:
        """Read what the versions would answer that are compared with others."""
        answering, before = self._versions.answering.name, self._versions.before
        if answering != UNTRAINED:
            self._weights[answering] = self._networks.read(answering)
        if before and before.name != UNTRAINED and not self._has_read(before.name):
            self._versions.before = None  # it is not there any more: nothing to roll back to
        if (gone := self._versions.gone) and not self._has_read(gone.name):
            self._versions.gone = None

    def _has_read(self, name: str) -> bool:
        with suppress(ModelError):
            self._weights[name] = self._networks.read(name)
        return name in self._weights

    def end(self) -> None:
        """Leave a checkpoint and a picture, and say what was learnt."""
        self.checkpoint()
        self._draw()
        self._store.unlock()
        answering = self._versions.answering
        text = f"{self._seen} pairs, {self._networks.steps} steps, {len(self._versions.published)}"
        self._say("info", f"{text} versions; {answering.name} answers, error {answering.error:.3g}")

    def checkpoint(self) -> None:
        """Write a checkpoint, and the reservoir if it has changed."""
        self._saved = time.monotonic()
        if self._reservoir is None:
            return
        try:
            if self._dirty:
                self._store.save_pairs(self._reservoir.saved(), self._pairs.seen)
                self._dirty = False
            if self._good:
                self._store.save(self._good[0], self._about(self._good[1]))
        except OSError as error:
            self._say_once("warning", f"there is no checkpoint: {describe(error)}")

    def _about(self, steps: int) -> dict[str, Any]:
        return {
            "trainer": self._name,
            "service": self._service.name,
            "steps": steps,
            "rate": self._networks.rate,
            "pairs": self._seen,
            "versions": self._versions.saved(),
            "progress": self._progress,
        }

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        if not self._progress:
            return
        published = self._versions.saved()["published"]
        try:
            picture.draw(self._name, self._progress, published, self._store.folder / PICTURE)
        except ImportError:
            self._say("info", "there is no picture without matplotlib: pip install matplotlib")
        except OSError as error:
            self._say_once("warning", f"there is no picture: {describe(error)}")

    # ---- one turn

    def turn(self) -> bool:
        """Take new pairs, and train for a while if there are enough.

        Returns:
            Whether it has trained.
        """
        self._take()
        if time.monotonic() - self._saved >= self._table.checkpoint_s:
            self.checkpoint()
        self._judge()
        pairs = self._reservoir
        if self.given_up or not pairs or not pairs.has(self._table.first_rows) or self._rests():
            return False
        self._round()
        return True

    @property
    def _seen(self) -> int:
        return self._reservoir.seen if self._reservoir else 0

    def _take(self) -> None:
        """Take new pairs for a while; the next turn takes the others."""
        end = time.monotonic() + TAKE_S
        for rows in self._pairs.new():
            if count(rows):
                (self._reservoir or self._make_reservoir(rows)).add(rows)
                self._dirty = True
            if time.monotonic() > end:
                return

    def _make_reservoir(self, like: Rows) -> Reservoir:
        table = self._table
        parts = (table.reservoir_rows, table.held_out, table.new_share, table.seed)
        self._reservoir = Reservoir(like, *parts)
        return self._reservoir

    def _rests(self) -> bool:
        if self._seen < self._rest_until:
            return True
        if self._rest_until:
            self._rest_until, self._best = 0, float("inf")
            self._networks.set_rate(AGAIN * self._table.rate)
            self._say("info", f"it trains again: {self._seen} pairs are there")
        return False

    def _round(self) -> None:
        """Train, validate, and let the better version answer."""
        assert self._reservoir
        reservoir, networks = self._reservoir, self._networks
        held = reservoir.held.there()
        if not self._good:
            self._start(held)
        if self.given_up:
            return
        try:
            loss = networks.train(
                self._table.round_steps, lambda: reservoir.draw(self._table.batch_rows)
            )
            networks.measure(held)
            error = networks.error(held)
            if not isfinite(error):
                raise DivergedError(f"the error is {error} in step {networks.steps}")
        except DivergedError as why:
            self._go_back(why)
            return
        self._good, self._diverged = (networks.checkpoint(), networks.steps), 0
        answering = self._error_of_answering(held)
        self._note(loss, error, answering)
        if not self._try_to_publish(error, answering, held):
            self._schedule(error, answering, held)

    def _start(self, held: Rows) -> None:
        assert self._reservoir
        self._networks.measure(held)
        if not self._weights:
            self._networks.fit_scales(self._reservoir.all())
        if self._networks.between_rows(taken(held, slice(LEAST_ROWS))) > BETWEEN_ROWS:
            self.given_up = True
            text = "no version would be as it was validated: answers depend on the other rows of a"
            self._say("error", f"{text} call; there is no training")
            return
        self._good = (self._networks.checkpoint(), self._networks.steps)
        self._say("info", f"training begins with {self._seen} pairs")

    def _go_back(self, why: DivergedError) -> None:
        """Train again from the last good validation, more slowly."""
        assert self._good
        self._diverged += 1
        if self._diverged > DIVERGED:
            self.given_up = True
            answers = self._versions.answering.name
            self._say("error", f"{why}, also at a lower rate: training ends, {answers} answers on")
            return
        table, steps = self._good
        rate = 0.5 * self._networks.rate
        self._networks.restore(table, rate, steps)
        self._say("warning", f"{why}: it goes on from step {steps} at rate {rate:.3g}")

    def _note(self, loss: float, error: float, answering: float) -> None:
        self._progress.append(
            {
                "seconds": time.time(),
                "steps": self._networks.steps,
                "rows": self._seen,
                "rate": self._networks.rate,
                "loss": loss,
                "error": error,
                "answering": answering,
                "version": self._versions.answering.name,
            }
        )
        if len(self._progress) > POINTS:
            self._progress[: POINTS // 2] = self._progress[: POINTS // 2 : 2]

    def _schedule(self, error: float, answering: float, held: Rows) -> None:
        """Lower the rate if nothing gets better, and rest at last."""
        if error < BETTER * self._best:
            self._best, self._stale = error, 0
            return
        self._stale += 1
        if self._table.schedule == "constant" or self._stale < self._table.patience:
            return
        self._stale = 0
        self._networks.set_rate(0.5 * self._networks.rate)
        text = f"not published: error {error:.3g} on {count(held)} held-out rows, "
        text += f"{self._versions.answering.name}, which answers, has {answering:.3g}"
        if self._networks.rate >= SLOWEST * self._table.rate:
            self._say("info", f"{text}; the rate is {self._networks.rate:.3g} now")
            return
        self._rest_until = int(MORE * self._seen) + 1
        self._say("info", f"{text}; it rests until {self._rest_until} pairs are there")

    # ---- versions

    def _error_of_answering(self, held: Rows) -> float:
        """Return the error of the version that answers; what was measured before is known."""
        assert self._reservoir
        seen = self._reservoir.held.seen
        states = self._weights.get(self._versions.answering.name)
        if states is None:
            return MEAN
        if self._known_error[0] != seen:
            self._known_error = (seen, self._networks.error(held, states))
        return self._known_error[1]

    def _error_of_gone(self, held: Rows) -> float:
        """Return the error of the version that was rolled back, as it is now."""
        gone = self._versions.gone
        return self._networks.error(held, self._weights[gone.name]) if gone else float("inf")

    def _try_to_publish(self, error: float, answering: float, held: Rows) -> bool:
        """Have a version answer that is better; return whether it does."""
        versions, table = self._versions, self._table
        if time.monotonic() < self._next:
            return False
        if not versions.beats(table, error, answering, self._error_of_gone(held)):
            return False
        name, old = versions.next_name(self._is_taken), versions.answering.name
        version = Version(name, error, self._seen, self._networks.steps, time.time())
        states = self._networks.states()
        text = f"{name} answers: error {error:.3g} on {count(held)} held-out rows, {old} has "
        text += f"{answering:.3g} there; {version.rows} pairs, {version.steps} steps"
        # What replicas were asked to load stays: one that was late may load it still.
        why = self._write(version, states) or self._publish_at(name, text)
        self._next = time.monotonic() + table.least_s * 2**self._refusals
        if why:
            self._refusals = min(self._refusals + 1, REFUSALS)
            self._say_once("error", f"is not published, {old} answers on: {why}", f"{name} ")
            return False
        self._refusals = 0
        versions.publish(version)
        self._weights = {n: w for n, w in self._weights.items() if n == old} | {name: states}
        self._answers_now()
        return True

    def _say_once(self, level: str, text: str, which: str = "") -> None:
        """Say what does not work, once for each reason."""
        if text not in self._said:
            self._said.add(text)
            self._say(level, f"{which}{text}")

    def _answers_now(self) -> None:
        self._known_error, self._judged = (-1, MEAN), self._seen
        self.checkpoint()
        if time.monotonic() - self._drawn >= DRAWN_S:
            self._draw()

    def _write(self, version: Version, states: list[State]) -> str:
        """Write the files of a version; say why that is not possible, or ""."""
        history = json.dumps([each.__dict__ for each in (*self._versions.published, version)])
        about = {"version": version.name, "error": str(version.error), "history": history}
        try:
            self._networks.write(version.name, states, about)
            self._write_data(version.name)
        except OSError as error:
            self._remove(version.name)
            return describe(error)
        return ""

    def _is_taken(self, name: str) -> bool:
        return any(path.exists() for path in self._networks.files(name))

    def _remove(self, name: str) -> None:
        for path in self._networks.files(name):
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def _write_data(self, version: str) -> None:
        """Write the inputs by which a service with distances knows what it was trained with."""
        table = self._service.of_version(version).uncertainty
        if table is None or table.method != "distance" or not self._reservoir:
            return
        path = self._service.folder / str(table.data)
        rows = self._reservoir.all()
        inputs = {tensor.name: rows[f"inputs/{tensor.name}"] for tensor in self._service.inputs}
        with replacing(path) as fresh, open(fresh, "wb") as file:
            np.savez(file, **inputs)  # type: ignore[arg-type]

    def _judge(self) -> None:
        """Load the version before again, if it would do better on the newest pairs."""
        versions, new = self._versions, self._seen - self._judged
        if versions.before is None or new < LEAST_NEW or not self._reservoir:
            return
        self._judged = self._seen
        rows, held = self._reservoir.newest(min(NEWEST, new)), self._reservoir.held.there()
        running = self._networks.error(rows, self._weights[versions.answering.name])
        states = self._weights.get(versions.before.name)
        mean = self._networks.error_of_mean(rows, held)
        before = self._networks.error(rows, states) if states else mean
        if versions.worse(self._table, running, before):
            self._roll_back(running, before, count(rows))

    def _roll_back(self, running: float, before: float, rows: int) -> None:
        versions = self._versions
        old = versions.answering.name
        name = versions.before.name if versions.before else UNTRAINED
        text = f"{name} answers again: on the newest {rows} pairs its error is {before:.3g}, "
        text += f"that of {old} is {running:.3g}"
        if why := self._publish_at(name, text):
            self._say("error", f"{name} cannot be loaded again, {old} answers on: {why}")
            return
        versions.roll_back()
        self._answers_now()
