"""Write what ranks show in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mpiserve.observe.parts import STAGES, SUB_BITS
from mpiserve.observe.ranks import BREAKER, STATES, Rank

TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Of histograms: powers of two from 1 us on, which buckets of a record TIMING begin at.
LEAST, MOST = 10, 36
REFUSED = ("rejected", "dropped", "cancelled")  # of the errors, those before the model ran

ROWS_OF_TRITON = "Rows that models have answered, as batches of a request of Triton."

Labels = dict[str, str]


@dataclass
class Family:
    """A metric with its samples: suffix of the name, labels, value."""

    name: str
    kind: str
    help: str
    samples: list[tuple[str, Labels, float]] = field(default_factory=list)

    def add(self, labels: Labels, value: float, suffix: str = "") -> None:
        """Add a sample."""
        self.samples.append((suffix, labels, value))

    def add_times(self, labels: Labels, timings: Sequence[Any]) -> None:
        """Add a histogram of times: of records TIMING."""
        buckets = sum(timing["buckets"].astype("i8") for timing in timings)
        count = int(buckets.sum())
        for power in range(LEAST, MOST + 1):
            below = int(buckets[: (power - SUB_BITS + 1) << SUB_BITS].sum())
            self.add(labels | {"le": f"{2.0**power * 1e-9:.12g}"}, below, "_bucket")
        self.add(labels | {"le": "+Inf"}, count, "_bucket")
        self.add(labels, count, "_count")
        self.add(labels, sum(float(timing["sum"]) for timing in timings) * 1e-9, "_sum")

    def lines(self) -> Iterator[str]:
        """Write it."""
        yield f"# HELP {self.name} {self.help}"
        yield f"# TYPE {self.name} {self.kind}"
        for suffix, labels, value in self.samples:
            text = ",".join(f'{key}="{_escaped(one)}"' for key, one in labels.items())
            yield f"{self.name}{suffix}{{{text}}} {_number(value)}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))


class _Families:
    """The metrics, by name, in the order of their first sample."""

    def __init__(self) -> None:
        self._made: dict[str, Family] = {}

    def __call__(self, name: str, kind: str, text: str) -> Family:
        return self._made.setdefault(name, Family(name, kind, text))

    def text(self) -> str:
        return written(self._made.values())


def text(ranks: Iterable[Rank], more: Iterable[Family] = ()) -> str:
    """Write all metrics of the ranks of any jobs, and families with other names."""
    make = _Families()
    for rank in ranks:
        _rank(make, rank)
        if rank.is_client:
            _client(make, rank)
        for service in rank.services:
            _replica(make, rank, service)
        if rank.part:
            _measured(make, rank)
    return make.text() + written(more)


def written(families: Iterable[Family]) -> str:
    """Write metrics."""
    return "".join(f"{line}\n" for family in families for line in family.lines())


def run_label(run: int) -> str:
    """Write the number of a session."""
    return f"{run & (2**64 - 1):016x}"


def _of(rank: Rank) -> Labels:
    return {"run": run_label(rank.run), "rank": str(rank.rank)}


# ---- ranks


def _rank(make: _Families, rank: Rank) -> None:
    up = make("mpiserve_up", "gauge", "1 while the rank is in the session, 0 when it has left.")
    up.add(_of(rank) | {"role": rank.role}, rank.lives)
    info = make("mpiserve_info", "gauge", "The version of mpiserve of a rank.")
    version = rank.head["library"].decode(errors="replace")
    info.add(_of(rank) | {"version": version, "ranks": str(int(rank.head["size"]))}, 1)


def _client(make: _Families, rank: Rank) -> None:
    for key, what in (
        ("requests", "Requests of a simulation rank that have ended."),
        ("rows", "Rows of these requests."),
        ("errors", "Of these requests, those that ended with an error."),
        ("fallbacks", "Of these requests, those of which the fallback answered rows."),
        ("local_answers", "Of these requests, those of which a local model answered rows."),
        ("failed_rows", "Rows of results that failed the check of the outputs."),
        ("untrusted_rows", "Rows of results whose uncertainty was above the limit."),
        ("rerouted", "Requests that were sent again to another replica."),
        ("paced_steps", "Time steps that answers of a pace were given to."),
        ("paced_age_sum", "The sum of the ages of these answers, in steps."),
    ):
        family = make(f"mpiserve_client_{key}_total", "counter", what)
        family.add(_of(rank), rank.counters[key])
    what = "The greatest age of an answer of a pace, in steps."
    oldest = make("mpiserve_client_paced_age_max", "gauge", what)
    oldest.add(_of(rank), rank.counters["paced_age_max"])
    what = "Seconds for which a simulation rank has waited for a reply by now; 0: it does not."
    make("mpiserve_client_waiting_seconds", "gauge", what).add(_of(rank), rank.waits)


# ---- replicas


def _replica(make: _Families, rank: Rank, service: dict[str, Any]) -> None:
    name, replica = service["name"], str(service["replica"])
    labels = _of(rank) | {"service": name, "replica": replica}
    triton = {"model": name} | _of(rank) | {"replica": replica}
    _counted(make, labels, service)
    _now(make, rank, labels, service)
    _as_triton(make, triton, service)
    if service["placement"]:
        _placed(make, labels, service["placement"])
    if service["ready_ns"] and not service["spare"]:
        _bootstrap(make, labels, (service["ready_ns"] - service["launched_ns"]) * 1e-9)


def _counted(make: _Families, labels: Labels, service: dict[str, Any]) -> None:
    counters = service["counters"]
    for key, what in (
        ("requests", "Requests that a replica has answered, with results or errors."),
        ("rows", "Rows that a replica has answered with results."),
        ("batches", "Batches that a replica has formed."),
        ("batches_in_place", "Of these, batches that needed no gathering copy."),
    ):
        make(f"mpiserve_{key}_total", "counter", what).add(labels, counters[key])
    if counters["cache_lookups"]:
        _kept(make, labels, counters)
    errors = make("mpiserve_errors_total", "counter", "Errors of a replica, by reason.")
    for reason, count in _reasons(counters).items():
        errors.add(labels | {"reason": reason}, count)
    what = "Why batches of a replica were closed."
    closed = make("mpiserve_batches_closed_total", "counter", what)
    for why in ("rows", "census", "delay"):
        closed.add(labels | {"by": why}, counters[f"closed_by_{why}"])


def _kept(make: _Families, labels: Labels, counters: dict[str, int]) -> None:
    """Of a service that keeps answers."""
    for key, what in (
        ("cache_lookups", "Rows that a replica which keeps answers has answered."),
        ("cache_hits", "Of these, rows whose answers were kept."),
        ("cached_requests", "Requests of a replica that had only such rows."),
    ):
        make(f"mpiserve_{key}_total", "counter", what).add(labels, counters[key])


def _reasons(counters: dict[str, int]) -> dict[str, int]:
    known = {reason: counters[reason] for reason in REFUSED}
    return known | {"other": max(0, counters["errors"] - sum(known.values()))}


def _now(make: _Families, rank: Rank, labels: Labels, service: dict[str, Any]) -> None:
    for name, key, what in (
        ("queue_requests", "queue_requests", "Requests that wait for a batch."),
        ("queue_rows", "queue_rows", "Rows of these requests."),
        ("held_requests", "held", "Requests that are held: they are answered in parts, or later."),
        ("batch_rows_limit", "max_batch_rows", "The setting max_batch_rows."),
        ("clients", "clients", "Simulation ranks that have not left the replica."),
        ("clients_counted", "able", "Of these, those that a batch waits for."),
        ("clients_asked", "asked", "Of these, those with a request that waits."),
    ):
        make(f"mpiserve_{name}", "gauge", what).add(labels, service[key])
    seconds = (rank.seen - service["batch_ns"]) * 1e-9 if service["batch_open"] else 0.0
    what = "Seconds since the batch that is computed was closed; 0: none is."
    make("mpiserve_batch_running_seconds", "gauge", what).add(labels, max(0.0, seconds))
    state = "gone" if not rank.lives else service["state"]
    states = make("mpiserve_replica_state", "gauge", "1 for the state of a replica, 0 for others.")
    for one in STATES:
        states.add(labels | {"state": one}, one == state)


def _placed(make: _Families, labels: Labels, placement: dict[str, Any]) -> None:
    """Of a service with a local and a remote model."""
    what = "Rows by the model that answered; returned: the local one, as the remote one did not."
    rows = make("mpiserve_placed_rows_total", "counter", what)
    for model in ("local", "remote", "returned"):
        rows.add(labels | {"model": model}, placement[f"{model}_rows"])
    what = "1 for the model that answers now, local or remote, 0 for the other one."
    side = make("mpiserve_placement", "gauge", what)
    what = "What a model takes for a call, and in addition for each row, as measured lately."
    cost = make("mpiserve_placement_seconds", "gauge", what)
    for model in ("local", "remote"):
        side.add(labels | {"model": model}, placement["side"] == model)
        for part in ("call", "row"):
            seconds = placement[f"{model}_{part}_ns"] * 1e-9
            cost.add(labels | {"model": model, "per": part}, seconds)
    what = "How often the model that answers has changed."
    make("mpiserve_placement_changes_total", "counter", what).add(labels, placement["changes"])
    what = "How often the circuit breaker of a remote model has opened."
    make("mpiserve_breaker_opened_total", "counter", what).add(labels, placement["opened"])
    what = "1 for the state of the circuit breaker, 0 for others."
    breaker = make("mpiserve_breaker_state", "gauge", what)
    for state in BREAKER:
        breaker.add(labels | {"state": state}, state == placement["breaker"])


def _as_triton(make: _Families, labels: Labels, service: dict[str, Any]) -> None:
    """Under the names of Triton Inference Server, where the meaning is the same."""
    counters = service["counters"]
    for name, kind, value, what in (
        *(
            ("request_success", "counter", counters["requests"] - counters["errors"], "Requests."),
            ("count", "counter", counters["rows"] - counters["cache_hits"], ROWS_OF_TRITON),
            ("exec_count", "counter", counters["batches"], "Batches."),
        ),
        ("pending_request_count", "gauge", service["queue_requests"], "Requests that wait."),
    ):
        make(f"nv_inference_{name}", kind, what).add(labels, value)
    if counters["cache_lookups"]:
        early = sum(counters[reason] for reason in REFUSED)
        misses = counters["requests"] - counters["cached_requests"] - early
        for name, value, what in (
            ("hits", counters["cached_requests"], "Requests that the cache has answered."),
            ("misses", misses, "Requests that it has not."),
        ):
            make(f"nv_cache_num_{name}_per_model", "counter", what).add(labels, value)
    failure = make("nv_inference_request_failure", "counter", "Requests that failed.")
    reasons = {"REJECTED": "rejected", "CANCELED": "cancelled"}
    counts = {key: counters[one] for key, one in reasons.items()}
    counts["OTHER"] = max(0, counters["errors"] - sum(counts.values()))
    for reason, count in counts.items():
        failure.add(labels | {"reason": reason}, count)


def _bootstrap(make: _Families, labels: Labels, seconds: float) -> None:
    what = "From the launch of a rank until its replica was ready first: BT."
    family = make("mpiserve_bootstrap_seconds", "histogram", what)
    for limit in (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000):
        family.add(labels | {"le": f"{limit:g}"}, seconds <= limit, "_bucket")
    family.add(labels | {"le": "+Inf"}, 1, "_bucket")
    family.add(labels, 1, "_count")
    family.add(labels, seconds, "_sum")


# ---- what is measured with MPISERVE_METRICS or MPISERVE_PROFILE


def _measured(make: _Families, rank: Rank) -> None:
    part = rank.part
    assert part is not None
    for client in part.clients:
        _response(make, rank, client)
    for head in part.heads:
        labels = _of(rank) | {"service": head["name"].decode(), "replica": str(head["replica"])}
        what = "How long a replica ran its model on a batch: IT."
        make("mpiserve_inference_seconds", "histogram", what).add_times(labels, [head["engine"]])
    if part.head["steps"]:
        _steps(make, rank, part.head)


def _response(make: _Families, rank: Rank, client: Any) -> None:
    name = client["name"].decode()
    labels = _of(rank) | {"service": name}
    what = "From submit until a simulation rank has the result: RT."
    make("mpiserve_response_seconds", "histogram", what).add_times(labels, [client["total"]])
    what = "Where the time of requests went: the sums of their stages."
    stages = make("mpiserve_stage_seconds_total", "counter", what)
    sums = {stage: float(client["stages"][i]["sum"]) for i, stage in enumerate(STAGES)}
    for stage, nanoseconds in sums.items():
        stages.add(labels | {"stage": stage}, nanoseconds * 1e-9)
    what = "How long a simulation rank was in calls that waited for a service."
    waited = make("mpiserve_client_waited_seconds_total", "counter", what)
    waited.add(labels, float(client["waited"]) * 1e-9)
    _durations_as_triton(make, {"model": name} | _of(rank), sums)


def _durations_as_triton(make: _Families, labels: Labels, sums: dict[str, float]) -> None:
    """Sums over requests, as Triton's, of what happens from the request until its response."""
    queue = sums["queue"] + sums["batch"]
    inside = sums["copy in"] + queue + sums["engine"] + sums["reply"]
    for name, nanoseconds, what in (
        ("request", inside, "Requests: copy in, queue, batch, engine and reply."),
        ("queue", queue, "Requests, in the queue, and while their batch waits for others."),
        ("compute_input", sums["copy in"], "Requests, while their inputs are copied."),
        ("compute_infer", sums["engine"], "Requests, while the model runs."),
        ("compute_output", sums["reply"], "Requests, while their results are written."),
    ):
        family = make(f"nv_inference_{name}_duration_us", "counter", what)
        family.add(labels, round(nanoseconds * 1e-3))


def _steps(make: _Families, rank: Rank, head: Any) -> None:
    what = "The time steps of a simulation rank."
    make("mpiserve_step_seconds", "histogram", what).add_times(_of(rank), [head["step_length"]])
    what = "How long a simulation rank waited for models in a time step."
    family = make("mpiserve_step_waited_seconds", "histogram", what)
    family.add_times(_of(rank), [head["step_waited"]])
