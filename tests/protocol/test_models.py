"""The protocol as models: spin finds no error in any state, and finds each planted bug."""

from functools import partial

import pytest
from jobs import ROOT
from protocol import spin

pytestmark = pytest.mark.skipif(not spin.installed(), reason=spin.MISSING)

FIGURES = ROOT / "build/protocol.txt"

LONG = partial(pytest.param, marks=pytest.mark.takes_long)

# Each model, and the definitions that choose what is in it.
RIGHT = [
    LONG("slots", []),
    ("slots", ["ONE_CLIENT"]),
    LONG("leases", []),
    LONG("leases", ["BUFFERS"]),
    ("leases", ["LAZY"]),
    ("sleep", []),
    ("sleep", ["HEAD_SLEEPS"]),
    ("close", []),
    ("close", ["LIMIT"]),
    ("suspend", []),
    ("suspend", ["STOPS"]),
    ("handover", []),
    ("guest", []),
    LONG("guest", ["STOPS"]),
]

WRONG = "assertion violated"
STUCK = "invalid end state"

# A definition that plants a bug, in which model, and what spin must say.
BUGS = [
    ("slots", ["DOORBELL_RELAXED"], WRONG),
    ("slots", ["HEADER_AFTER_DOORBELL"], WRONG),
    ("slots", ["ACQUIRE_DROPPED"], WRONG),
    ("slots", ["SEQUENCE_RELAXED"], WRONG),
    ("slots", ["RESULT_AFTER_SEQUENCE"], WRONG),
    ("slots", ["NO_SLOT_LIMIT"], WRONG),
    ("slots", ["SLOT_REUSED"], WRONG),
    ("slots", ["SEEN_IS_DOORBELL"], STUCK),
    ("slots", ["CANCELLED_KEPT"], WRONG),
    ("slots", ["OVERTAKES"], WRONG),
    ("slots", ["DEATH_NOT_COUNTED"], STUCK),
    ("leases", ["LEASE_FREED_EARLY"], WRONG),
    ("leases", ["FREED_WHILE_READ"], WRONG),
    ("leases", ["DEAD_KEEP_ROWS"], WRONG),
    ("leases", ["RETURN_GRANTS_NOTHING"], WRONG),
    ("leases", ["BUFFERS", "BUFFER_ANYWHERE"], WRONG),
    ("leases", ["LAZY", "NEVER_REFUSED"], WRONG),
    ("sleep", ["NO_LIMIT"], STUCK),
    ("sleep", ["HEAD_SLEEPS", "NO_LIMIT"], STUCK),
    ("sleep", ["HEAD_SLEEPS", "NO_SECOND_LOOK"], WRONG),
    ("sleep", ["HEAD_SLEEPS", "NO_FENCE"], WRONG),
    ("sleep", ["HEAD_SLEEPS", "RAISED_ONCE"], WRONG),
    ("sleep", ["WAKE_BEFORE_CHANGE"], WRONG),
    ("close", ["DEATH_NOT_COUNTED"], STUCK),
    ("close", ["LEFT_TWICE"], STUCK),
    ("close", ["BARRIER_OF_ALL"], STUCK),
    ("close", ["WAITS_FOR_DEAD_HEAD"], STUCK),
    ("close", ["FREED_WITHOUT_BARRIER"], WRONG),
    ("close", ["LIMIT", "FREED_AFTER_LIMIT"], WRONG),
    ("close", ["LIMIT", "LEFT_UNSAID"], STUCK),
    ("suspend", ["TURNED_AWAY_IS_OVER"], WRONG),
    ("suspend", ["ABANDONED_GOES_ON"], WRONG),
    ("suspend", ["DEAD_HEAD_FORGOTTEN"], STUCK),
    ("suspend", ["DRAINED_ONCE"], WRONG),
    ("suspend", ["STOPS", "WITHDRAWN_ENDS_TWICE"], WRONG),
    ("suspend", ["STOPS", "WITHDRAWN_SLOT_IS_FREE"], STUCK),
    ("handover", ["REQUEST_RELAXED"], WRONG),
    ("handover", ["NEWS_RELAXED"], WRONG),
    ("handover", ["CALL_AFTER_REQUEST"], WRONG),
    ("handover", ["RESULT_AFTER_NEWS"], WRONG),
    ("handover", ["ROWS_AFTER_NEWS"], WRONG),
    ("handover", ["SEPARATE_END"], WRONG),
    ("handover", ["NO_FENCE"], WRONG),
    ("handover", ["NO_LIMIT"], STUCK),
    ("handover", ["NO_LAST_LOOK"], WRONG),
    ("handover", ["TAKEN_LATE"], WRONG),
    ("handover", ["TAKEN_READ_EARLY"], WRONG),
    ("handover", ["OLD_MEMORY"], WRONG),
    ("guest", ["GUEST_IN_ROUND"], STUCK),
    ("guest", ["GUEST_NEEDS_ROUND"], WRONG),
    ("guest", ["GUEST_AMONG_REMAINING"], STUCK),
    ("guest", ["GUEST_NOT_WAITED_FOR"], STUCK),
    ("guest", ["GUEST_DEATH_NOT_COUNTED"], STUCK),
    ("guest", ["GONE_UNSAID"], STUCK),
    ("guest", ["STOPS", "NO_LIMIT_FOR_GUESTS"], STUCK),
    ("guest", ["STOPS", "NO_LIMIT_TO_MEET"], STUCK),
    ("guest", ["STOPS", "FREED_WITHOUT_GUEST"], WRONG),
    ("guest", ["STOPS", "ENDS_TWICE"], WRONG),
]


def name(value):
    return "-".join(value) if isinstance(value, list) else value


@pytest.fixture(scope="module")
def figures():
    """Collect lines for make proof, which prints them."""
    lines = []
    yield lines
    FIGURES.write_text("\n".join(lines) + "\n")


@pytest.mark.timeout(2 * spin.SECONDS)
@pytest.mark.parametrize(("model", "defines"), RIGHT, ids=name)
def test_a_model_has_no_error_in_any_state(model, defines, tmp_path, figures):
    found = spin.check(model, defines, tmp_path)
    words = " ".join([model, *defines])
    figures.append(
        f"{words:20} {found.states:10,} states {found.megabytes:6.0f} MB {found.seconds:6.1f} s"
    )
    assert found.complete, f"{found.error}\n{found.way}\n{found.text}"


@pytest.mark.timeout(2 * spin.SECONDS)
@pytest.mark.parametrize(("model", "defines", "error"), BUGS, ids=name)
@pytest.mark.takes_long
def test_a_planted_bug_is_found(model, defines, error, tmp_path):
    found = spin.check(model, defines, tmp_path, optimise="-O0")
    assert error in found.error, found.text
