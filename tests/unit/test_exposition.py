"""What Prometheus reads of ranks: text, files, and a port. The ranks are this process."""

import os
import socket
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest
from prometheus_client.parser import text_string_to_metric_families as parsed
from shown_job import RUN, a_job, found, placed, samples, value

from mpiserve.observe import exposition
from mpiserve.tools import metrics


def test_the_text_is_what_prometheus_reads():
    with a_job():
        known = samples(exposition.text(found(run=RUN)[1]))
    assert value(known, "mpiserve_client_requests_total", rank="0") == 70
    assert value(known, "mpiserve_requests_total", service="twice", replica="1") == 90
    assert value(known, "mpiserve_errors_total", reason="rejected") == 2
    assert value(known, "mpiserve_errors_total", reason="other") == 2
    assert value(known, "mpiserve_replica_state", state="busy") == 1
    assert value(known, "mpiserve_replica_state", state="ready") == 0
    assert value(known, "nv_inference_request_success", model="twice") == 85
    assert value(known, "nv_inference_request_failure", reason="REJECTED") == 2
    assert value(known, "nv_inference_count", model="twice") == 640
    assert value(known, "nv_inference_exec_count") == 20
    assert value(known, "nv_inference_pending_request_count") == 3
    assert value(known, "mpiserve_bootstrap_seconds_sum") == 2
    assert value(known, "mpiserve_inference_seconds_count") == 1


def test_histograms_count_what_is_below_their_limits():
    with a_job():
        known = samples(exposition.text(found(run=RUN)[1]))
    name = "mpiserve_response_seconds"
    limits = {
        float(dict(labels)["le"]): number
        for (one, labels), number in known.items()
        if one == f"{name}_bucket"
    }
    assert limits[4.096e-6] == 0 and limits[8.192e-6] == 1 and limits[16.384e-6] == 2
    assert limits[2.097152e-3] == 2 and limits[4.194304e-3] == 3 and limits[float("inf")] == 3
    assert value(known, f"{name}_count") == 3
    assert value(known, f"{name}_sum") == pytest.approx(4.014e-3)


def test_names_of_services_cannot_break_the_text():
    name = 'a"b\\c\nd'
    family = exposition.Family("mpiserve_up", "gauge", "One.")
    family.add({"service": name}, 1)
    (read,) = parsed("\n".join(family.lines()) + "\n")
    assert read.samples[0].labels == {"service": name}


def test_a_file_is_written_whole_for_each_job(tmp_path):
    with a_job():
        metrics._write(found(run=RUN)[0], tmp_path)
    (file,) = tmp_path.iterdir()
    assert file.name == "mpiserve-fffffffffffffff9-0.prom"
    assert value(samples(file.read_text()), "mpiserve_client_requests_total", rank="0") == 70


@contextmanager
def serving(**how):
    server = metrics._Server(**how)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def get(url, token=""):
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, ""


def test_a_port_asks_for_its_token():
    with a_job(), serving(address=("127.0.0.1", 0), family=socket.AF_INET, run=RUN) as server:
        server.token = b"a secret of the user"
        host, port = server.server_address
        assert host == "127.0.0.1"
        url = f"http://127.0.0.1:{port}/metrics"
        assert get(url)[0] == get(url, "another")[0] == 401
        assert get(url + "x", "a secret of the user")[0] == 404
        status, text = get(url, "a secret of the user")
    assert status == 200
    assert value(samples(text), "mpiserve_client_requests_total", rank="0") == 70


def test_a_client_that_says_nothing_does_not_stay(monkeypatch):
    monkeypatch.setattr(metrics, "PATIENCE", 0.2)
    where = {"address": ("127.0.0.1", 0), "family": socket.AF_INET}
    with (
        serving(**where, run=RUN) as server,
        socket.create_connection(server.server_address) as silent,
    ):
        silent.settimeout(20)
        silent.sendall(b"GET /metr")
        assert silent.recv(1) == b""


def test_only_this_user_can_connect_to_a_socket(tmp_path):
    path = str(tmp_path / "s")
    with metrics._bound_socket(path, RUN) as server:
        assert os.stat(path).st_mode & 0o777 == 0o600
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        with a_job(), socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            text = b"".join(iter(lambda: client.recv(65536), b"")).decode()
        server.shutdown()
        thread.join()
    assert value(samples(text.partition("\r\n\r\n")[2]), "mpiserve_up", rank="0") == 1
    assert not os.path.exists(path)


@pytest.mark.parametrize(
    ("mode", "token", "why"),
    [(0o644, "x" * 32, "chmod 600"), (0o600, "short", "at least 16"), (None, "", "No such file")],
)
def test_a_token_that_is_none_is_refused(tmp_path, capsys, mode, token, why):
    file = tmp_path / "token"
    if mode is not None:
        file.write_text(token)
        file.chmod(mode)
    assert metrics.listen(path=None, port=0, token_file=str(file), run=None) == 1
    assert why in capsys.readouterr().err


def test_a_port_without_a_token_is_refused(capsys):
    assert metrics.listen(path=None, port=0, token_file=None, run=None) == 1
    assert "--token-file" in capsys.readouterr().err


def test_where_a_service_with_two_models_is_answered():
    numbers = placed(side=2, breaker=2, local_rows=7, remote_rows=90, returned_rows=3, opened=4)
    numbers[-2:] = 5_000_000, 1_000
    with a_job(placement=numbers):
        known = samples(exposition.text(found(run=RUN)[1]))
    rows = {"local": 7, "remote": 90, "returned": 3}
    assert rows == {how: value(known, "mpiserve_placed_rows_total", model=how) for how in rows}
    assert value(known, "mpiserve_placement", model="remote") == 1
    assert value(known, "mpiserve_placement", model="local") == 0
    assert value(known, "mpiserve_placement_seconds", model="remote", per="call") == 5e-3
    assert value(known, "mpiserve_breaker_state", state="half-open") == 1
    assert value(known, "mpiserve_breaker_state", state="closed") == 0
    assert value(known, "mpiserve_breaker_opened_total", service="twice") == 4


def test_a_service_that_keeps_answers_says_how_many():
    with a_job(counts={"cache_lookups": 640, "cache_hits": 600, "cached_requests": 70}):
        known = samples(exposition.text(found(run=RUN)[1]))
    assert value(known, "mpiserve_cache_lookups_total", service="twice") == 640
    assert value(known, "mpiserve_cache_hits_total", service="twice") == 600
    assert value(known, "mpiserve_cached_requests_total", service="twice") == 70
    assert value(known, "mpiserve_rows_total", service="twice") == 640
    assert value(known, "nv_inference_count", model="twice") == 40, "Triton leaves them out"
    assert value(known, "nv_cache_num_hits_per_model", model="twice") == 70
    assert value(known, "nv_cache_num_misses_per_model", model="twice") == 90 - 70 - 2 - 1
    with a_job():
        assert "cache" not in exposition.text(found(run=RUN)[1])


def test_a_service_with_one_model_has_no_placement():
    with a_job():
        assert "placement" not in exposition.text(found(run=RUN)[1])
