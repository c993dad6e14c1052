"""A trace: its files, the clocks of its nodes, and what is made of it."""

from __future__ import annotations

import base64
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import chrome_trace
import numpy as np
import pytest

from mpiserve.observe import spans, trace
from mpiserve.observe.spans import ANSWERED, BATCH, CHANGE, MOVED, REQUEST, SAME_CLOCK, STATE, STEP
from mpiserve.observe.trace import CLOCK, EVENT, FILE
from mpiserve.tools import trace as program
from mpiserve.tools import trace_spans

US = 1000
AHEAD = 5_000_000_000_000  # of the clock of n2


def event(kind, times, **values):
    made = np.zeros(1, EVENT)[0]
    made["kind"], made["peer"] = kind, -1
    made["times"][: len(times)] = times
    for name, value in values.items():
        made[name] = value
    return made


NOT_MEASURED = (0, 0, 0)


def write(folder, rank, events, *, node=0, role=0, room=16, clocks=None, **values):
    """As csrc/base/trace.c: the ring holds the last events, each where its number says."""
    head = np.zeros(1, FILE)[0]
    known = {"magic": b"mpitrace", "version": 1, "n_services": 1, "run": 7, "rank": rank, "size": 3}
    known |= {"role": role, "node": node, "n_events": room, "host": b"n2" if node else b"n1"}
    known |= {"opened_at": 1_700_000_000_000_000_000, "opened": 1 + AHEAD * bool(node)}
    for name, value in (known | {"written": len(events)} | values).items():
        head[name] = value
    head["clocks"] = np.array(clocks or [(1, 0, 0), NOT_MEASURED], CLOCK)
    ring = np.zeros(room, EVENT)
    for at, one in enumerate(events):
        ring[at % room] = one
    names = np.array([b"twice"], "S64")
    folder.mkdir(exist_ok=True)
    data = head.tobytes() + names.tobytes() + ring.tobytes()
    (folder / f"rank-{rank}.trace").write_bytes(data)


def request(begin, *, closed, end, same=True, shift=0, **values):
    """A request that a head takes after 10 us, and computes for 20 us once its batch is closed."""
    at = [begin, begin + US, begin + 2 * US, end - US, end, begin, end]
    head = [begin + 10 * US, 0, closed, closed + US, closed + 21 * US, closed + 22 * US]
    flags = ANSWERED | (SAME_CLOCK if same else 0)
    times = at + [time + shift if time else 0 for time in head]
    return event(REQUEST, times, **({"flags": flags, "peer": 2, "rows": 4} | values))


def batch(closed, *, shift=0, first, last, peer, **values):
    ends = [closed, closed + US, closed + 21 * US, closed + 22 * US, closed + 23 * US]
    times = [time + shift for time in (first, last, 0, *ends)]
    return event(BATCH, times, **({"requests": 2, "rows": 8, "peer": peer, "flags": 2} | values))


CLOCKS_OF_N2 = [(1 + AHEAD, -AHEAD, 40 * US), (1000 * US + AHEAD, -AHEAD, 30 * US)]


def write_job(folder, *, other=None):
    """Two clients, on both nodes, and a head on n2, whose batch waits for rank 1."""
    one, two = 100 * US, 180 * US
    own = {"closed": 200 * US, "end": 240 * US, "requests": 2, "batch_rows": 8}
    steps = [event(STEP, [50 * US, 250 * US, 140 * US], requests=1)]
    failed = request(300 * US, closed=0, end=310 * US, flags=0, code=-9)
    moved = event(MOVED, [305 * US], peer=2, requests=1)
    mine = request(one, shift=AHEAD, same=False, **own)
    write(folder, 0, [mine, *steps, failed, moved])
    there = {"node": 1, "clocks": CLOCKS_OF_N2}
    late = request(two + AHEAD, **(own | {"closed": 200 * US + AHEAD, "end": 240 * US + AHEAD}))
    write(other or folder, 1, [late], **there)
    done = batch(200 * US, shift=AHEAD, first=110 * US, last=190 * US, peer=1)
    life = event(STATE, [260 * US + AHEAD], flags=4)
    change = event(CHANGE, [265 * US + AHEAD, 270 * US + AHEAD], flags=1, peer=0)
    change["times"][2:5] = np.frombuffer(b"v2".ljust(24, b"\0"), "i8")
    write(other or folder, 2, [done, life, change], role=1, **there)


# ---- files


def test_a_full_ring_has_the_last_events_and_says_how_many_went(tmp_path):
    write(tmp_path, 0, [event(STATE, [n]) for n in range(1, 41)], room=16)
    (one,) = trace.read([tmp_path])
    # The slot of the next event may be half written, so that 15 of 16 are sure.
    assert one.events["times"][:, 0].tolist() == list(range(26, 41)) and one.dropped == 25
    assert "the oldest events were dropped, 25 on 1 ranks" in trace.lost([one.head])
    assert "MPISERVE_PROFILE_EVENTS" in trace.lost([one.head])


def test_a_ring_with_room_is_whole(tmp_path):
    write(tmp_path, 0, [event(STATE, [n]) for n in range(1, 16)], room=16)
    (one,) = trace.read([tmp_path])
    assert len(one.events) == 15 and one.dropped == 0 and trace.lost([one.head]) == ""


def test_what_is_overwritten_while_it_is_read_is_left_out():
    ring = np.zeros(16, EVENT)
    ring["times"][:, 0] = np.arange(16)
    head = np.zeros(1, FILE)[0]
    head["magic"], head["version"], head["n_events"], head["written"] = b"mpitrace", 1, 16, 16
    assert len(trace.parse(head, ring.tobytes()).events) == 15
    some = trace.parse(head, ring.tobytes(), lambda: 20)
    assert some.events["times"][:, 0].tolist() == list(range(5, 16))
    assert len(trace.parse(head, ring.tobytes(), lambda: 1000).events) == 0


def test_other_sessions_and_other_files_are_left_out(tmp_path):
    write(tmp_path, 0, [event(STATE, [1])], run=7)
    write(tmp_path, 1, [event(STATE, [1])], run=6, opened_at=1)
    (tmp_path / "rank-2.trace").write_bytes(b"mpitrace and no more")
    assert [one.rank for one in trace.read([tmp_path])] == [0]
    assert [one.rank for one in trace.read([tmp_path], 6)] == [1]
    assert len(trace.heads(tmp_path, 7)) == 1 and not trace.heads(tmp_path, 5)


# ---- clocks


def test_a_drift_between_open_and_close_is_followed(tmp_path):
    clocks = [(1000, -500, 10), (2000, -400, 10)]
    write(tmp_path, 1, [], node=1, clocks=clocks)
    (one,) = trace.read([tmp_path])
    assert one.aligned([1000, 1500, 2000]).tolist() == [500, 1050, 1600]
    assert one.aligned([900, 2100]).tolist() == [400, 1700]  # not beyond what was measured
    assert one.aligned([0]).tolist() == [0]


def test_without_a_close_the_clock_of_open_counts(tmp_path):
    write(tmp_path, 1, [], node=1, clocks=[(1000, -AHEAD, 10), NOT_MEASURED])
    assert trace.read([tmp_path])[0].aligned([AHEAD + 7]).tolist() == [7]


def test_a_clock_that_is_hardly_known_does_not_count(tmp_path):
    close, far = (1000 * US, -400, 30 * US), (1, -70 * US, 5000 * US)
    write(tmp_path, 1, [], node=1, clocks=[far, close])
    assert trace.read([tmp_path])[0].aligned([500 * US]).tolist() == [500 * US - 400]
    write(tmp_path, 1, [], node=1, clocks=[(1, -400, 30 * US), (1000 * US, *far[1:])])
    assert trace.read([tmp_path])[0].aligned([500 * US]).tolist() == [500 * US - 400]


def test_stages_of_nodes_whose_clocks_differ(tmp_path):
    write_job(tmp_path)
    first, failed, late = spans.requests(trace.read([tmp_path]))
    assert [name for name, _, _ in first.spans] == [
        *("slot", "copy in", "transport", "batch", "copy in", "engine", "reply", "back"),
        "copy out",
    ]
    lengths = {name: end - begin for name, begin, end in first.spans}
    assert lengths["engine"] == 20 * US and lengths["transport"] == 8 * US
    assert lengths["batch"] == 90 * US and sum(b - a for _, a, b in first.spans) == 140 * US
    assert [name for name, _, _ in failed.spans] == ["slot", "copy in", "unanswered"]
    assert late.key == first.key and late.begin == 180 * US


def test_without_the_trace_of_its_head_a_request_has_its_stages(tmp_path):
    write_job(tmp_path)
    (tmp_path / "rank-2.trace").unlink()
    first, _, late = spans.requests(trace.read([tmp_path]))
    for one in (first, late):
        assert {name: b - a for name, a, b in one.spans}["engine"] == 20 * US


# ---- programs


def test_merge_writes_what_a_viewer_can_show(tmp_path, capsys):
    write_job(tmp_path / "here", other=tmp_path / "there")
    file = tmp_path / "merged.json"
    folders = [str(tmp_path / "here"), str(tmp_path / "there")]
    assert program.merge(folders, str(file)) == 0
    assert "3 requests, 2 with their batch, and 1 batches of 3 ranks" in capsys.readouterr().out
    found = chrome_trace.parse(file)
    assert found.processes[1] == "rank 1: simulation on n2" and len(found.processes) == 3
    assert len(found.flows) == 2 and len(found.named(0, "time step")) == 1
    (made,) = found.named(2, "batch twice")
    assert made["args"]["last rank"] == 1 and made["args"]["waited us"] == 80.0
    assert abs(made["ts"] - 200) < 1  # by the clock of rank 0
    assert [one["name"] for one in found.instants[2]] == ["twice: suspended"]
    assert found.named(2, "twice: load v2") and found.instants[0][0]["name"].endswith("to rank 2")


@pytest.mark.parametrize("off", [-1000, 1000])
def test_a_batch_that_clocks_put_outside_of_its_request_has_no_arrow(tmp_path, capsys, off):
    clocks = [(now, off * US - AHEAD, error) for now, _, error in CLOCKS_OF_N2]
    write_job(tmp_path)
    done = batch(200 * US, shift=AHEAD, first=110 * US, last=190 * US, peer=1)
    write(tmp_path, 2, [done], role=1, node=1, clocks=clocks)
    assert program.merge([str(tmp_path)], str(tmp_path / "m.json")) == 0
    assert "2 requests have no arrow" in capsys.readouterr().out
    assert chrome_trace.parse(tmp_path / "m.json").flows == []


def test_requests_that_overlap_have_a_thread_each(tmp_path):
    pairs = [(10, 100), (20, 60), (70, 90), (110, 120)]
    every = [request(a * US, closed=a * US, end=b * US) for a, b in pairs]
    write(tmp_path, 0, every)
    assert program.merge([str(tmp_path)], str(tmp_path / "m.json")) == 0
    found = chrome_trace.parse(tmp_path / "m.json")
    assert sorted(found.threads.values()) == ["time steps", "twice", "twice #2"]
    write(tmp_path, 0, every[:1] * 3)
    program.merge([str(tmp_path)], str(tmp_path / "m.json"))
    assert len(chrome_trace.parse(tmp_path / "m.json").threads) == 4


def test_view_names_the_rank_that_a_request_waited_for(tmp_path, capsys):
    write_job(tmp_path)
    assert program.view([str(tmp_path)], 10) == 0
    said = capsys.readouterr().out
    assert said.startswith("mpiserve: a trace of 3 of 3 ranks, on 2 host(s): 3 requests, 1 batches")
    assert "the clock of n2 is known to 20 us at open and 15 us at close" in said
    lines = [line for line in said.splitlines() if line.endswith("rank 1, 80 us")]
    assert len(lines) == 1 and "2 at rank 2" in lines[0] and "batch 64 %" in lines[0]
    assert re.search(r"rank 2  twice: suspended", said) and "twice: load v2, 5 us" in said


def test_a_picture_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    write_job(tmp_path)
    assert program.view([str(tmp_path)], 1, str(tmp_path / "t.png")) == 0
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_trace_programs_say_so(tmp_path, capsys):
    assert program.merge([str(tmp_path)]) == program.view([str(tmp_path)], 1) == 1
    assert "there is no trace of this version" in capsys.readouterr().err
    assert program.export([str(tmp_path)]) == 2


def test_plain_json(tmp_path):
    write_job(tmp_path)
    file = tmp_path / "t.json"
    assert program.export([str(tmp_path)], json=str(file), chrome=str(tmp_path / "c.json")) == 0
    made = json.loads(file.read_text())
    assert [one["rank"] for one in made["ranks"]] == [0, 1, 2]
    own = [one["batch"] for one in made["requests"]]
    assert own[0] == own[2] == made["batches"][0]["batch"]
    assert made["requests"][1]["batch"] is None and made["requests"][1]["code"] == -9
    assert made["batches"][0]["waited"] == 80 * US
    chrome_trace.parse(tmp_path / "c.json")


# ---- OpenTelemetry


def spans_of(messages):
    for one in messages:
        for resource in one["resourceSpans"]:
            for scope in resource["scopeSpans"]:
                yield from scope["spans"]


def test_spans_of_opentelemetry(tmp_path):
    write_job(tmp_path)
    file = tmp_path / "spans.json"
    assert program.export([str(tmp_path)], otlp=str(file)) == 0
    found = list(spans_of(map(json.loads, file.read_text().splitlines())))
    assert len({span["spanId"] for span in found}) == len(found)
    assert all(re.fullmatch("[0-9a-f]{32}", span["traceId"]) for span in found)
    assert all(re.fullmatch("[0-9a-f]{16}", span["spanId"]) for span in found)
    roots = [span for span in found if span["name"] == "request twice"]
    (one,) = [span for span in found if span["name"] == "batch twice"]
    assert {link["spanId"] for link in one["links"]} == {roots[0]["spanId"], roots[2]["spanId"]}
    parts = [span for span in found if span.get("parentSpanId") == roots[0]["spanId"]]
    assert parts[0]["startTimeUnixNano"] == roots[0]["startTimeUnixNano"]
    assert parts[-1]["endTimeUnixNano"] == roots[0]["endTimeUnixNano"]
    begin = 1_700_000_000_000_000_000 + 100 * US - 1
    assert int(roots[0]["startTimeUnixNano"]) == begin and roots[1]["status"]["code"] == 2


def test_they_fit_the_protobuf_of_opentelemetry(tmp_path):
    """Its JSON form is that of protobuf, but for ids, which are hexadecimal and not base64."""
    service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    json_format = pytest.importorskip("google.protobuf.json_format")
    write_job(tmp_path)
    text = json.dumps(trace_spans.message(trace_spans.otlp(trace.read([tmp_path]))))

    def in_base64(found):
        return f'"{found[1]}": "{base64.b64encode(bytes.fromhex(found[2])).decode()}"'

    text = re.sub(r'"(traceId|spanId|parentSpanId)": "([0-9a-f]+)"', in_base64, text)
    made = json_format.Parse(text, service.ExportTraceServiceRequest())
    assert len(made.resource_spans) == 3
    assert len(made.resource_spans[0].scope_spans[0].spans[0].trace_id) == 16


class Collector(BaseHTTPRequestHandler):
    """What a collector does with a message."""

    def do_POST(self):
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.taken.append((self.path, self.headers["Content-Type"], json.loads(data)))
        self.send_response(200 if self.path == "/v1/traces" else 404)
        self.end_headers()

    def log_message(self, *args):
        pass


def test_they_are_sent_to_a_collector(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(trace_spans, "SPANS", 5)
    write_job(tmp_path)
    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        server.taken = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert program.export([str(tmp_path)], otlp=f"{url}/v1/traces") == 0
        assert program.export([str(tmp_path)], otlp=f"{url}/elsewhere") == 1
        server.shutdown()
    *every, refused = server.taken
    assert {kind for _, kind, _ in every} == {"application/json"} and len(every) > 1
    count = len(list(spans_of([one for _, _, one in every])))
    assert f"took {count} spans" in capsys.readouterr().out and refused[0] == "/elsewhere"
