"""What `mpiserve top` makes of ranks. The ranks are this process."""

import json
from dataclasses import replace

from shown_job import RUN, a_job, found, placed

from mpiserve.tools import top


def two_looks(**values):
    with a_job(**values):
        before = top.Look(0.0, found(run=RUN)[1])
        now = found(run=RUN)[1]
    now[0] = replace(now[0], head=now[0].head.copy())
    now[0].head["counters"][0] += 50
    counts = now[1].services[0]["counters"]
    counts["requests"] += 40
    counts["batches"] += 10
    counts["rows"] += 320
    return top.view(before, top.Look(2.0, now))


def test_top_says_what_happened_between_two_looks():
    (job,) = two_looks()["jobs"]
    (service,), (client,) = job["services"], job["simulation"]
    (replica,) = service["replicas"]
    assert client["requests_per_s"] == 25 and client["waits_for"] == 2
    assert service["requests_per_s"] == 20 and replica["batches_per_s"] == 5
    assert replica["rows_a_batch"] == 32 and replica["fill"] == 0.5
    assert replica["state"] == "busy" and 0.4 < replica["batch_seconds"] < 5
    assert service["response"]["count"] == 3 and 8e-6 < service["response"]["p50"] < 1e-5


def test_top_writes_lines_without_a_terminal_and_tables_with_one():
    seen = two_looks()
    text = "\n".join(top.lines(seen))
    assert "twice/1 rank 2 busy: 20 requests/s, batches of 32 rows (50 %), queue 3" in text
    assert "rank 0 2" in text and "for rank 2" in text
    json.dumps(seen)
    from rich.console import Console

    console = Console(width=160)
    with console.capture() as text:
        console.print(top.tables(seen))
    drawn = text.get()
    assert "twice" in drawn and "3/4" in drawn and "50 %" in drawn


def test_top_says_how_many_rows_were_kept():
    seen = two_looks(counts={"cache_lookups": 640, "cache_hits": 320, "cached_requests": 45})
    (replica,) = seen["jobs"][0]["services"][0]["replicas"]
    assert replica["hit_rate"] == 0.5, "of all rows, as there were none lately"
    assert "(50 %), 50 % of rows kept, queue 3" in "\n".join(top.lines(seen))
    from rich.console import Console

    console = Console(width=160)
    with console.capture() as text:
        console.print(top.tables(seen))
    assert "kept" in text.get()
    assert "kept" not in "\n".join(top.lines(two_looks()))


def test_top_says_which_of_two_models_answers_and_why():
    numbers = placed(side=2, local_rows=7, remote_rows=90, changes=3, opened=1)
    numbers[-4:] = 30_000_000, 1_000_000, 2_000_000, 0
    text = "\n".join(top.lines(two_looks(placement=numbers)))
    assert (
        "twice/1 rank 2: the remote model answers; a row takes 31 ms here and 2 ms there; rows: "
        "local 7, remote 90, returned 0; 3 changes; breaker closed, opened 1 times"
    ) in text
    assert "model answers" not in "\n".join(top.lines(two_looks()))


def test_top_says_that_there_is_no_job():
    assert top.lines(top.view(top.Look(0, []), top.Look(1, []))) == [top.NONE]
