"""Bugs of the protocol to plant in the C sources, and the C programs that must find them."""

from __future__ import annotations

from typing import NamedTuple

# How a program is built: with the thread sanitizer, or with the address sanitizer and run by MPI.
THREADS, MEMORY = "tsan", "asan"


class Bug(NamedTuple):
    """Lines of one file that are replaced; each must be there exactly once."""

    name: str
    file: str
    lines: dict[str, str]
    program: str
    build: str = THREADS


def unordered(word: str) -> dict[str, str]:
    """Load a word without acquire, in a file that has others."""
    return {f"{word}, memory_order_acquire": f"{word}, memory_order_relaxed"}


RELEASE, ACQUIRE = (
    {f"memory_order_{order}": "memory_order_relaxed"} for order in ("release", "acquire")
)
PACK = "msi_side_pack(side, payload->rows, slot->input, payload->inputs);"
CLEAR = "atomic_store_explicit(&slot->request.cancelled, 0, memory_order_relaxed);"
SEEN = "inbox->seen[lane] = (uint8_t)sequence;"
OPEN = "if (inbox->lanes[lane].open & (slot_bit(sequence) | MSI_SHUT)) return 0;"
UPPER = "return range.begin + range.rows > inbox->pool.rows / 2;"
LIMIT = "FUTEX_WAIT, value, &limit, NULL"
TEXT = "entry->rows < MSI_EAGER_BYTES ? entry->rows : MSI_EAGER_BYTES"
HANDOVER = "base/handover.c"
LAST, LAST_MISSED = "!(found = look(parent)) && !dead", "!dead && !(found = look(parent))"
TAKEN = "atomic_store_explicit(&shared->taken, child->request, memory_order_relaxed);"

BUGS = [
    Bug("doorbell relaxed", "mpi/shared.c", RELEASE, "race_lanes"),
    Bug("sequence relaxed", "head/inbox.c", RELEASE, "race_lanes"),
    Bug("doorbell seen without acquire", "head/inbox.c", ACQUIRE, "race_lanes"),
    Bug("reply seen without acquire", "client/endpoint.c", ACQUIRE, "race_lanes"),
    Bug(
        "payload after doorbell",
        "client/endpoint.c",
        {PACK: "", "*sequence = endpoint->sent;": f"*sequence = endpoint->sent; if (bytes) {PACK}"},
        "race_lanes",
    ),
    Bug(
        "slot used again before its reply was read",
        "client/endpoint.c",
        {"return !endpoint->taken[endpoint->sent % MSI_SLOTS];": "return endpoint != 0;"},
        "race_steps",
    ),
    Bug(
        "doorbell noted as it is now",
        "head/inbox.c",
        {SEEN: "inbox->seen[lane] = inbox->memory[inbox->layout.doorbells_at + lane];"},
        "race_steps",
    ),
    Bug(
        "open slot taken",
        "head/inbox.c",
        {OPEN: "if (inbox->lanes[lane].open & MSI_SHUT) return 0;"},
        "race_steps",
    ),
    Bug("cancellation kept", "client/endpoint.c", {CLEAR: ""}, "race_steps"),
    Bug(
        "lease freed while a request reads it",
        "head/leases.c",
        {"!msi_leases_is_used(broker, entry, entry->lease);": "1;"},
        "race_steps",
    ),
    Bug("upper half kept", "head/inbox.c", {UPPER: "return !inbox && range.rows;"}, "race_steps"),
    Bug(
        "rows that come back are granted to nobody",
        "head/leases.c",
        {"return code ? code : msi_leases_grant(broker);\n}\n\nvoid": "return code;\n}\n\nvoid"},
        "race_steps",
    ),
    Bug(
        "leaving counted twice",
        "head/loss.c",
        {"-= !lane->gone;": "-= 1;"},
        "race_steps",
    ),
    Bug(
        "dead client not counted as left",
        "head/loss.c",
        {"  uncount(broker, &inbox->lanes[lane]);\n  msi_inbox_shut": "  msi_inbox_shut"},
        "race_steps",
    ),
    Bug(
        "request of a dead client taken",
        "head/loss.c",
        {"msi_inbox_shut(inbox, lane);": ""},
        "race_steps",
    ),
    Bug(
        "rows of the dead freed while a request reads them",
        "head/loss.c",
        {"if (!is_used) msi_inbox_lease_drop": "msi_inbox_lease_drop"},
        "race_steps",
    ),
    Bug(
        "rows of the dead never freed",
        "head/loss.c",
        {"broker->dead_rows |= is_used;": "(void)is_used;"},
        "race_steps",
    ),
    Bug(
        "dead client not seen by a head that always has a batch",
        "head/serving.c",
        {"if (now < serving->next_burial_ns)": "if (now < INT64_MAX)"},
        "race_steps",
    ),
    Bug(
        "rows of a withdrawn request are free at once",
        "client/stopped.c",
        {"hand_over(&call->payload.output, sent, &withdrawn->output);": ""},
        "race_stopped",
    ),
    Bug(
        "mark of a client that left not seen",
        "head/leave.c",
        {"marks & MSI_HAS_LEFT ?": "!marks ?"},
        "race_steps",
    ),
    Bug(
        "mark seen before the last request is taken",
        "head/leave.c",
        {"marks > MSI_CANCELLED && !untaken(inbox, lane)": "marks > MSI_CANCELLED"},
        "race_steps",
    ),
    Bug(
        "rows of a client that left in a hurry never freed",
        "head/loss.c",
        {"broker->dead_rows |= inbox->lanes[lane].queued != 0;": ""},
        "race_steps",
    ),
    Bug(
        "no second look",
        "base/wait.c",
        {"wait->armed = address->wakers;\n    return 1;": "wait->armed = address->wakers;"},
        "test_wait",
    ),
    Bug(
        "flag raised only once",
        "base/wait.c",
        {"wait->armed != address->wakers": "!wait->armed"},
        "test_wait",
    ),
    Bug(
        "sleep without a limit",
        "base/wait.c",
        {LIMIT: LIMIT.replace("&limit", "limit.tv_sec ? &limit : NULL")},
        "test_wait",
    ),
    Bug("hand-over relaxed", HANDOVER, RELEASE, "race_handover"),
    Bug("call seen without acquire", HANDOVER, unordered("shared->request"), "race_handover"),
    Bug("news seen without acquire", HANDOVER, unordered("news"), "race_handover"),
    Bug("no look after the death", HANDOVER, {LAST: LAST_MISSED}, "race_handover"),
    Bug("child does not say that it took the call", HANDOVER, {TAKEN: ""}, "test_handover"),
    Bug(
        "number of a lease not checked",
        "head/fit.h",
        {"if (lease >= MSI_LEASES) return 0;": ""},
        "hostile",
        MEMORY,
    ),
    Bug(
        "free dimensions not checked",
        "head/inbox.c",
        {" && msi_side_has_dims(side, dims);": ";"},
        "hostile",
        MEMORY,
    ),
    Bug(
        "lease of a record not checked",
        "head/capture.c",
        {"lease < 0 || lease >= MSI_LEASES": "lease < 0"},
        "hostile",
        MEMORY,
    ),
    Bug("length of a text not checked", "head/broker.c", {TEXT: "entry->rows"}, "hostile", MEMORY),
]
