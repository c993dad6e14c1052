"""For any configuration, `check` passes, or prints one line and exits with status 2."""

import json
import random
import time

import pytest
import typer

from mpiserve import cli

MODEL = """\
import mpiserve

def twice(x, factor=2):
    return factor * x

def before(x):
    return x

class Own(mpiserve.Backend):
    pass
"""
TENSOR = {"name": "x", "dtype": "float32", "shape": [-1, 3]}
SERVICE = {
    "backend": "python",
    "model": "model:twice",
    "preprocess": "model:before",
    "options": {"factor": 2},
    "version": "",
    "reload": "beside",
    "inputs": [TENSOR],
    "outputs": [TENSOR],
    "replicas": 1,
    "tensor_parallel": 1,
    "peer_timeout_s": 3.0,
    "max_batch_rows": 64,
    "max_delay_us": 200,
    "pool_bytes": 0,
    "stickiness": 0.25,
    "max_queue_rows": 100,
    "on_full": "reject",
    "threads": 1,
    "chunk_rows": 0,
    "warmup": [1, 2],
}
CONFIG = {
    "partition": {"placement": "per-node", "per_node": 1, "bind": False},
    "service": {"a": SERVICE, "b": SERVICE},
    "pool": {},
}
POOL = {"ranks": 2, "services": ["a", "b"], "loaded": 1, "interval_s": 1.0, "least_s": 1.0}
NUMBERS = ("service.a.replicas", "service.a.tensor_parallel", "service.a.peer_timeout_s")
NUMBERS += tuple(f"service.a.{key}" for key in SERVICE if key.startswith("max_"))
NUMBERS += ("service.a.pool_bytes", "service.a.stickiness", "service.a.threads")
NUMBERS += ("service.a.chunk_rows", "service.a.inputs.0.shape.1", "service.a.warmup.0")
NUMBERS += ("partition.per_node", "pool.p.ranks", "pool.p.loaded", "pool.p.interval_s")
NUMBERS += ("pool.p.least_s", "service.a.options.factor")
# Of a number, as TOML writes it. What no key may have comes last.
ENDS = ("-1", "0", "2147483648", "9007199254740992", "9223372036854775807")
NEVER = ("9223372036854775808", "18446744073709551616", "9" * 5000, f"0x{'f' * 5000}")
NEVER_TIMES = ("1e400", "-1e400", "inf", "nan")
TEXTS = {
    "zero": "x\0",
    "line": "x\ny",
    "escape": "\x1b[2J",
    "long": "x" * 5000,
    "empty": "",
    "direction": "x\u200f\u202e",
    "decomposed": "e\u0301",
    "markup": "[/red]",
    "braces": "{version}",
    "percent": "%s%n",
    "quote": "'\"\\",
    "path": "../../../../dev/zero",
    "colons": ":::",
    "file": "./model.py:twice",
}


class Raw(str):
    """Stands in TOML as it is."""


def toml(value):
    """Write a value in one line."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        inside = (f"{json.dumps(key, ensure_ascii=False)} = {toml(v)}" for key, v in value.items())
        return f"{{ {', '.join(inside)} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    return json.dumps(value, ensure_ascii=False)


def document(tables):
    return "\n".join(f"{key} = {toml(value)}" for key, value in tables.items())


def with_pool():
    tables = json.loads(json.dumps(CONFIG))
    tables["service"]["a"].pop("tensor_parallel")
    for service in tables["service"].values():
        service.pop("replicas")
        service.pop("tensor_parallel", None)
    return tables | {"pool": {"p": dict(POOL)}}


def changed(place, value):
    """The good configuration with another value at a place."""
    tables = with_pool() if place.startswith("pool") else json.loads(json.dumps(CONFIG))
    *way, last = (int(part) if part.isdigit() else part for part in place.split("."))
    at = tables
    for part in way:
        at = at[part]
    at[last] = value
    return document(tables)


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """Check a text; give the status and the lines of stderr."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(MODEL)

    def of(text):
        data = text if isinstance(text, bytes) else text.encode(errors="surrogatepass")
        (tmp_path / "c.toml").write_bytes(data)
        status = 0
        try:
            cli.check("c.toml")
        except typer.Exit as end:
            status = end.exit_code
        said = capsys.readouterr().err
        lines = said.splitlines()
        assert all(line.isprintable() and len(line) < 1200 for line in lines)
        if status:
            assert status == 2
            assert len(lines) == 1 and lines[0].startswith("mpiserve: c.toml: "), lines
        else:
            assert all(line.startswith("mpiserve: warning: c.toml: ") for line in lines), lines
        return status, said

    return of


def test_the_good_ones_pass(check):
    assert check(document(CONFIG)) == (0, "")
    assert check(document(with_pool())) == (0, "")


@pytest.mark.parametrize("place", NUMBERS)
def test_a_number_is_within_reason(check, place):
    for text in ENDS:
        check(changed(place, Raw(text)))
    for text in NEVER:
        assert check(changed(place, Raw(text)))[0] == 2
    if "options" not in place:
        for text in NEVER_TIMES:
            status, said = check(changed(place, Raw(text)))
            assert status == 2 and place.split(".")[-1].rstrip("01") in said
    for value in (True, "x", [], {}, [[1]], Raw("1979-05-27")):
        if "options" not in place and (value is not True or "warmup" not in place):
            assert check(changed(place, value))[0] == 2


@pytest.mark.parametrize(
    ("key", "value", "status"),
    [
        ("pool_bytes", 2**44, 0),
        ("pool_bytes", 2**63 - 1, 2),
        ("threads", 1000, 0),
        ("threads", 1025, 2),
        ("replicas", 65537, 2),
        ("peer_timeout_s", 1e8, 2),
        ("max_batch_rows", 2**30, 2),
        ("warmup", [1] * 65, 2),
    ],
)
def test_limits(check, key, value, status):
    assert check(changed(f"service.a.{key}", value))[0] == status


def test_the_product_of_a_shape_is_taken(check):
    for shape in ([-1, 2**31 - 1, 2**31 - 1], [-1, *[2**16] * 4], [-1, 2**32]):
        status, said = check(changed("service.a.inputs", [TENSOR | {"shape": shape}]))
        assert status == 2 and "inputs[0].shape" in said
    status, said = check(changed("service.a.inputs", [TENSOR | {"shape": [-1, 2**31 - 1, 100]}]))
    assert status == 2 and "service.a.max_batch_rows: 64 rows of" in said


def test_more_memory_than_there_is_is_a_warning(check):
    status, said = check(changed("service.a.inputs", [TENSOR | {"shape": [-1, 2**31 - 1, 4]}]))
    assert status == 0
    # 2 batches of 64 rows of inputs and outputs, and 1 that is gathered.
    assert f"a rank needs {3 * 64 * (4 * 4 * (2**31 - 1) + 12)} bytes" in said


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_a_line(check, text):
    value = TEXTS[text]
    for key in ("backend", "model", "preprocess", "version", "dtype", "on_full", "task"):
        check(changed(f"service.a.{key}", value))
    check(changed("service.a.options", {"factor": value}))
    for backend in ("torch", "onnx", "deepspeed"):
        wanted = {"backend": backend, "model": value, "options": {}}
        if backend == "torch":
            wanted |= {"model": "model:before", "options": {"weights": value, "arguments": {}}}
        check(document({"service": {"a": SERVICE | wanted}}))
    assert check(changed("service.a.options", {value: 1}))[0] == 2
    assert check(changed("service.a.inputs.0.dtype", value))[0] == 2
    assert check(changed(f"service.a.{value.replace('.', ',')}x", value))[0] == 2
    bad = text in ("zero", "line", "escape", "long", "empty", "direction", "decomposed")
    for tables in (
        changed("service.a.inputs.0.name", value),
        document({"service": {value: SERVICE}}),
    ):
        assert check(tables)[0] == (2 if bad else 0)


@pytest.mark.parametrize(
    "place",
    ["partition", "service", "service.a", "service.a.inputs", "service.a.inputs.0", "pool.p"]
    + ["service.a.options", "service.a.inputs.0.shape", "pool.p.services", "service.a.warmup"],
)
def test_a_table_is_no_list_and_a_list_no_table(check, place):
    for value in ({}, [], [{}], [[]], {"a": {}}, 3, "x", [3], ["x"], {"x": 3}):
        check(changed(place, value))


DEEP = {
    "lists": "options = { a = " + "[" * 5000 + "]" * 5000 + " }",
    "tables": "options = " + "{a=" * 3000 + "1" + "}" * 3000,
    "a dotted key": "options." + "a." * 100000 + "b = 1",
    "quoted keys": "options." + '"a".' * 100000 + "b = 1",
    "a header": "[" + "a." * 200000 + "a]",
    "40 lists": "options = { a = " + "[" * 40 + "]" * 40 + " }",
    "40 keys": "options." + "a." * 40 + "b = 1",
}


@pytest.mark.parametrize("what", DEEP)
def test_levels_by_the_thousand_are_one_line_at_once(check, what):
    service = document(SERVICE | {"options": {}}).replace("options = {  }", "")
    begin = time.monotonic()
    status, said = check(f"[service.a]\n{service}\n{DEEP[what]}\n")
    assert status == 2 and "levels" in said
    assert time.monotonic() - begin < 20  # without a limit: hours


def test_random_configurations_are_a_line_or_right(check):
    values = [Raw(text) for text in (*ENDS, *NEVER, *NEVER_TIMES, "true", "1979-05-27T07:32:00")]
    values += [*TEXTS.values(), [], {}, [[]], [{}], [TENSOR], SERVICE, CONFIG, [1, 2], 1.5]
    for seed in range(150):
        random_ = random.Random(seed)
        tables = with_pool() if seed % 2 else json.loads(json.dumps(CONFIG))
        for _ in range(random_.randint(1, 3)):
            at = tables
            while isinstance(at, (dict, list)) and at and random_.random() < 0.8:
                inside = list(at) if isinstance(at, dict) else list(range(len(at)))
                last = at, random_.choice(inside)
                at = at[last[1]]
            at, key = last
            if isinstance(at, dict) and random_.random() < 0.2:
                key = random_.choice(list(TEXTS.values()))
            at[key] = random_.choice(values)
        try:
            check(document(tables))
        except BaseException:
            print(f"seed {seed}")
            raise
