import pickle

import pytest

from mpiserve.config import Config
from mpiserve.errors import Code, ConfigError

CHEMISTRY = """
[service.chemistry]
model = "chemistry:build"
inputs  = [{name = "state", dtype = "float32", shape = [-1, 3]}]
outputs = [{name = "rate",  dtype = "float32", shape = [-1, 3]}]
"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def from_text(text):
        (tmp_path / "coupling.toml").write_text(text)
        return Config.load("coupling.toml")

    return from_text


@pytest.fixture
def line(load):
    """The one line that a wrong file gives."""

    def from_text(text):
        with pytest.raises(ConfigError) as caught:
            load(text)
        assert caught.value.code == Code.ECONFIG
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return from_text


def test_defaults_are_those_of_the_design(load):
    config = load(CHEMISTRY)
    service = config.service["chemistry"]
    assert config.partition.placement == "tail"
    assert (service.name, service.backend, service.dtype) == ("chemistry", "deepspeed", None)
    assert (service.replicas, service.max_batch_rows, service.max_delay_us) == (1, 4096, 200)
    assert service.inputs[0].shape == (-1, 3)


def test_a_service_knows_the_folder_of_its_file(load, tmp_path):
    assert load(CHEMISTRY).services[0].folder == tmp_path


def test_a_configuration_travels_between_ranks(load):
    config = load(CHEMISTRY)
    copy = pickle.loads(pickle.dumps(config))
    assert copy == config
    assert copy.source == "coupling.toml"
    assert copy.services[0].name == "chemistry"


def test_a_configuration_cannot_be_changed(load):
    with pytest.raises(ValueError, match="frozen"):
        load(CHEMISTRY).services[0].replicas = 2


def test_warm_up_takes_one_row_and_a_full_batch(load):
    assert load(CHEMISTRY).services[0].warmup_rows == (1, 4096)
    assert load(CHEMISTRY + "max_batch_rows = 1").services[0].warmup_rows == (1,)
    assert load(CHEMISTRY + "warmup = false").services[0].warmup_rows == ()
    assert load(CHEMISTRY + "warmup = [8, 16]").services[0].warmup_rows == (8, 16)
    assert load(CHEMISTRY + 'warmup = "rows.npz"').services[0].warmup_rows == (1, 4096)


def test_echo_needs_no_model_and_no_outputs(load):
    text = '[service.e]\nbackend = "echo"\ninputs = [{name="x", dtype="bfloat16", shape=[-1]}]'
    service = load(text).services[0]
    assert service.outputs == service.inputs


def test_a_missing_file_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^nowhere\.toml: no such file or directory$"):
        Config.load("nowhere.toml")


def test_a_syntax_error_has_its_line(line):
    assert line("a = 1\nb c").startswith("coupling.toml: line 2, column 3: ")


def test_a_file_without_services_is_refused(line):
    assert line("").startswith("coupling.toml: service: missing")


WRONG = {
    "modle = 'a:b'": "modle: unknown key (did you mean 'model'?)",
    "xyzzy = 1": "xyzzy: unknown key (one of: backend, model, ",
    "replicas = 0": "replicas: must be greater than or equal to 1, got 0",
    "replicas = '2'": "replicas: must be an integer, got '2'",
    "replicas = true": "replicas: must be an integer, got True",
    "max_batch_rows = 2.5": "max_batch_rows: must be an integer, got 2.5",
    "max_delay_us = -1": "max_delay_us: must be greater than or equal to 0, got -1",
    "max_queue_rows = -1": "max_queue_rows: must be greater than or equal to 0, got -1",
    'on_full = "drop"': "on_full: must be 'wait' or 'reject', got 'drop'",
    'on_full = "reject"': "on_full: 'reject' needs max_queue_rows",
    "threads = 0": "threads: must be greater than or equal to 1, got 0",
    "backend = 'deepsped'": "backend: unknown backend 'deepsped' (did you mean 'deepspeed'?)",
    "dtype = 'int8'": "dtype: unknown model dtype 'int8' (one of: float16, ",
    "backend = 'torch'\ntensor_parallel = 2": "tensor_parallel: 2: the backend 'torch' runs",
    "tensor_parallel = 2\nfallback = 'local'": "fallback: 'local': a client has no 2 ranks for a",
    "fallback = 'physics'": "fallback: must be 'local', got 'physics'",
    "task = 'chat'": "task: unknown task 'chat' (one of: generate, embed)",
    "backend = 'python'\ntask = 'embed'": "task: tasks need the backend 'deepspeed', 'torch' or",
    "warmup = [0]": "warmup: rows must be 1 to max_batch_rows, got [0]",
    'warmup = "rows.csv"': "warmup: must be true, false, a list of rows or a .npz file, got",
    'rows = "merged"': "rows: must be 'independent', 'together', 'none' or 'ragged', got 'merged'",
    'chunk_rows = 8\nrows = "together"': "chunk_rows: cuts requests, which rows = 'together' ex",
    'rows = "none"': "inputs: 'state' has [-1, 3]: with rows = 'none' a tensor has no dimension",
    'input_memory = "mine"': "input_memory: must be 'view' or 'copy', got 'mine'",
    "warmup = 3": "warmup: must be true, false, a list of rows or a .npz file, got 3",
    "options = 3": "options: must be a table, got 3",
    "reproducible = true\nreplicas = 2": "reproducible: true, but which of 2 repl",
    "reproducible = true\nmax_queue_rows = 9": "reproducible: true, but what finds",
    "reproducible = true\nmax_delay_us = 9": "reproducible: true, but max_delay_us = 9",
    "reproducible = true\noptions.compile = 'max-autotune'": "reproducible: true, but which ",
    "reproducible = true\nbackend = 'remote'\noptions.url = 'http://x'": "reproducible: true, but ",
    "cache_rows = -1": "cache_rows: must be greater than or equal to 0, got -1",
    'cache_rows = 9\nrows = "together"': "cache_rows: 9, but only independent rows are kept, and",
    "cache_rows = 9\nreproducible = true": "cache_rows: 9, but what is kept depends on time (repro",
    "cache_rows = 9\ntask = 'generate'": "cache_rows: 9, but the task 'generate' answers in steps",
    "cache_rows = 9\nbackend = 'remote'\noptions.url = 'http://x'": "cache_rows: 9, but the model",
    "cache_step = 0.1": "cache_step: 0.1 needs cache_rows",
    "cache_step = -0.1\ncache_rows = 9": "cache_step: must be greater than or equal to 0, got -0.1",
    "cache_step = 1e-301\ncache_rows = 9": "cache_step: 1e-301 is below 1e-300",
    "cache_step = nan\ncache_rows = 9": "cache_step: must be a finite number, got nan",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_key_of_a_service_is_one_line(line, text):
    assert line(CHEMISTRY + text).startswith(f"coupling.toml: service.chemistry.{WRONG[text]}")


REPLACED = {
    ('model = "chemistry:build"\n', ""): "model: missing; the backend 'deepspeed' needs one",
    ("model =", "modle ="): "modle: unknown key (did you mean 'model'?)",
    ('"float32", shape = [-1, 3]}]\nout', '"flot32", shape = [-1]}]\nout'): (
        "inputs[0].dtype: unknown dtype 'flot32' (did you mean 'float32'?)"
    ),
    ('name = "state", ', ""): "inputs[0].name: missing",
    ('name = "state"', 'nam = "state"'): "inputs[0].nam: unknown key (did you mean 'name'?)",
    ("shape = [-1, 3]}]\nout", "shape = [3, 3]}]\nout"): (
        "inputs: 'state' has [3, 3]: the first dimension is the number of rows and must be -1; "
        "where tensors have no rows, set rows = 'none'"
    ),
    ("shape = [-1, 3]}]\nout", "shape = [-1, -1]}]\nout"): (
        "inputs[0].max_shape: missing; shape is [-1, -1]: say how large free dimensions can be, "
        "such as [-1, 64]"
    ),
    ("shape = [-1, 3]}]\nout", "shape = [-1, -1], max_shape = [-1, 0]}]\nout"): (
        "inputs[0].max_shape: dimension 1 must be positive; shape is [-1, -1], got [-1, 0]"
    ),
    ("shape = [-1, 3]}]\nout", "shape = [-1, 3, -1], max_shape = [-1, 4, 9]}]\nout"): (
        "inputs[0].max_shape: dimension 1 is not free and must be the same as in shape; shape is"
    ),
    ("shape = [-1, 3]}]\nout", "shape = [-1, -1], max_shape = [-1]}]\nout"): (
        "inputs[0].max_shape: must have as many dimensions as shape; shape is [-1, -1], got [-1]"
    ),
    ("shape = [-1, 3]}]\nout", "shape = [-1, 3], max_shape = [9, 3]}]\nout"): (
        "inputs: 'state' has [-1, 3]: the first dimension is the number of rows and must be -1"
    ),
    ("shape = [-1, 3]}]\nout", "shape = [-1, 0]}]\nout"): (
        "inputs[0].shape: every dimension must be positive, or -1 for rows or if it is free, got"
    ),
    ("shape = [-1, 3]}]\nout", "shape = 3}]\nout"): "inputs[0].shape: must be a list, got 3",
    ("outputs = ", "#"): "outputs: missing",
    ('"state"', f'"{"n" * 64}"'): "inputs[0].name: a name must have 1 to 63 bytes",
}


@pytest.mark.parametrize("change", REPLACED, ids=REPLACED.values())
def test_a_wrong_signature_or_model_is_one_line(line, change):
    text = CHEMISTRY.replace(*change, 1)
    assert text != CHEMISTRY
    assert line(text).startswith(f"coupling.toml: service.chemistry.{REPLACED[change]}")


FIELD = """
[service.field]
model = "field:build"
rows = "none"
inputs = [{name = "w", dtype = "float32", shape = [3, 4]}]
outputs = [{name = "y", dtype = "float64", shape = []}]
"""


def test_tensors_without_rows_are_one_row(load):
    field = load(FIELD).services[0]
    w, y = field.inputs[0], field.outputs[0]
    assert (w.row_shape, w.row_bytes, w.dims(1), w.dims(None)) == ((3, 4), 48, (1, 3, 4), (3, 4))
    assert (y.row_shape, y.row_bytes, y.dims(1), y.dims(None)) == ((), 8, (1,), ())
    assert (field.max_batch_rows, field.warmup_rows, field.by_request) == (1, (1,), True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max_batch_rows = 8", "max_batch_rows: 8: with rows = 'none' a batch is one request"),
        ("allow_empty = true", "allow_empty: true, but there are no rows of which a request may"),
        ("chunk_rows = 8", "chunk_rows: cuts requests, which rows = 'none' excludes"),
        ('task = "embed"', "rows: 'none' is not possible: the task 'embed' takes rows"),
        ("warmup = [2]", "warmup: rows must be 1 to max_batch_rows, got [2]"),
    ],
)
def test_without_rows_some_keys_make_no_sense(line, text, said):
    assert line(FIELD + text).startswith(f"coupling.toml: service.field.{said}")


def test_two_tensors_of_one_name_are_refused(line):
    both = (
        '[{name = "x", dtype = "int8", shape = [-1]}, {name = "x", dtype = "int8", shape = [-1]}]'
    )
    text = CHEMISTRY.replace('[{name = "state", dtype = "float32", shape = [-1, 3]}]', both)
    assert line(text).endswith("service.chemistry.inputs: two tensors are named 'x'")


def test_an_echo_of_another_shape_is_refused(line):
    text = CHEMISTRY.replace("[-1, 3]", "[-1, 4]", 1) + 'backend = "echo"'
    assert "the backend 'echo' returns its inputs" in line(text)


PARTITION = {
    "ranks = [3, 1, 3]": "partition.ranks: rank 3 is listed twice",
    "ranks = [-1]": "partition.ranks: rank -1 is negative",
    "ranks = []": "partition.ranks: at least one rank must infer",
    "placement = 'head'": "partition.placement: must be 'tail', 'per-node' or 'dedicated', "
    "got 'head'",
    "per_node = 1": "partition: per_node needs placement = 'per-node'",
    "placement = 'tail'\nranks = [1]": "partition: placement and ranks exclude each other",
    "rank = [1]": "partition.rank: unknown key (did you mean 'ranks'?)",
}


@pytest.mark.parametrize("text", PARTITION)
def test_a_wrong_partition_is_one_line(line, text):
    assert line(f"[partition]\n{text}\n{CHEMISTRY}") == f"coupling.toml: {PARTITION[text]}"


POOLS = {
    "services = []": "'p' has no services",
    "services = ['chemistri']": "'p': no service 'chemistri' (did you mean 'chemistry'?)",
    "services = ['chemistry', 'chemistry']": "'p': the service 'chemistry' is listed twice",
    "services = ['two']": "'p': the service 'two' sets replicas: remove it, "
    "since the pool has a replica on each of its ranks",
    "services = ['wide']": "'p': the service 'wide' sets tensor_parallel, "
    "which a pool does not support: remove it",
    "services = ['same']": "'p': the service 'same' is reproducible, but which rank of a pool "
    "answers depends on time: remove one",
    "services = ['chemistry', 'busy']": "'p': threads must be the same for all its services",
}


@pytest.mark.parametrize("text", POOLS)
def test_a_wrong_pool_is_one_line(line, text):
    others = {"two": "replicas = 2", "wide": "tensor_parallel = 2", "busy": "threads = 2"}
    others |= {"same": "reproducible = true"}
    tables = [CHEMISTRY]
    for name, key in others.items():
        tables.append(CHEMISTRY.replace("service.chemistry", f"service.{name}") + f"\n{key}\n")
    assert line("".join(tables) + f"[pool.p]\n{text}\n") == f"coupling.toml: pool: {POOLS[text]}"


ADAPTIVE = {
    "loaded = 2": "loaded = 2, but there are 2 services: "
    "leave it out, and each rank holds all of them",
    "loaded = 1": "1 ranks that hold 1 are too few for 2 services",
    "loaded = 0": "must be greater than or equal to 1, got 0",
    "hysteresis = 2.0": "hysteresis needs loaded: otherwise ranks hold all services",
}


@pytest.mark.parametrize("text", ADAPTIVE)
def test_a_wrong_adaptive_pool_is_one_line(line, text):
    other = CHEMISTRY.replace("service.chemistry", "service.other")
    said = line(CHEMISTRY + other + f"[pool.p]\nservices = ['chemistry', 'other']\n{text}\n")
    key = ".loaded" if text == "loaded = 0" else ""
    assert said == f"coupling.toml: pool.p{key}: {ADAPTIVE[text]}"


def test_a_service_has_as_many_replicas_as_its_pool_has_ranks(load):
    config = load(CHEMISTRY + "\n[pool.p]\nranks = 3\nservices = ['chemistry']\n")
    assert config.service["chemistry"].replicas == 3
    assert [group.key for group in config.groups] == ["pool.p.ranks"]


def versioned(**table):
    io = [{"name": "x", "dtype": "float32", "shape": [-1, 2]}]
    base = {"backend": "python", "model": "m:f", "inputs": io, "outputs": io}
    return Config.from_dict({"service": {"s": base | table}}).services[0]


def test_a_version_stands_where_the_service_says():
    options = {"weights": "w-{version}.bin", "more": {"list": ["{version}", 7, "{x}"]}}
    service = versioned(model="m:net_{version}", options=options, version="1")
    second = service.of_version("2.b-rc+1")
    assert second.model == "m:net_2.b-rc+1"
    assert second.options == {
        "weights": "w-2.b-rc+1.bin",
        "more": {"list": ["2.b-rc+1", 7, "{x}"]},
    }
    assert (second.version, second.name, second.folder) == ("2.b-rc+1", "s", service.folder)
    assert service.of_version().model == "m:net_1"
    assert service.model == "m:net_{version}"


@pytest.mark.parametrize("version", ["../2", "a b", "", ".x", "v" * 64])
def test_a_version_is_a_plain_name(version):
    match = "missing" if not version else "a version is letters"
    with pytest.raises(ConfigError, match=rf"service\.s\.version: {match}"):
        versioned(model="m:net_{version}", version=version)
    if version:
        with pytest.raises(ConfigError, match=r"service\.s\.version: a version is letters"):
            versioned(model="m:net_{version}", version="1").of_version(version)


def test_a_version_must_have_a_meaning():
    with pytest.raises(ConfigError, match=r"version: neither model nor options say \{version\}"):
        versioned(version="1")
    with pytest.raises(ConfigError, match="'2' has no meaning"):
        versioned().of_version("2")
    assert versioned().of_version().model == "m:f"


BOUNDED = {
    "min at an input": ('inputs  = [{name = "state",', "min = 0,", "only values of outputs"),
    "max below min": ('outputs = [{name = "rate", ', "min = 1, max = 0.5,", "0.5 is below min = 1"),
}


@pytest.mark.parametrize("what", BOUNDED)
def test_wrong_bounds(line, what):
    begin, bounds, text = BOUNDED[what]
    assert text in line(CHEMISTRY.replace(begin, f"{begin} {bounds}"))


def test_outputs_have_bounds(load):
    table = CHEMISTRY.replace('"rate", ', '"rate", min = 0,') + 'check = "finite"\n'
    service = load(table).services[0]
    assert (service.check, service.outputs[0].min, service.outputs[0].max) == ("finite", 0.0, None)


IMAGES = """
[service.images]
model = "images:build"
inputs  = [
  {name = "image", dtype = "float32", shape = [-1, 3, -1, -1], max_shape = [-1, 3, 64, 32]},
]
outputs = [{name = "mask",  dtype = "float32", shape = [-1, -1, -1], max_shape = [-1, 64, 32]}]
"""


def test_free_dimensions_are_laid_out_for_the_largest(load):
    service = load(IMAGES).services[0]
    image, mask = service.inputs[0], service.outputs[0]
    assert service.has_free_dims and image.is_free and image.has_rows
    assert image.row_bytes == 3 * 64 * 32 * 4 and image.dims(5) == (5, 3, 64, 32)
    assert image.fits((2, 3, 1, 32), 2) and mask.fits((2, 64, 32), 2)
    for shape in [(2, 3, 65, 1), (2, 4, 1, 1), (3, 3, 1, 1), (2, 3, 1)]:
        assert not image.fits(shape, 2)


@pytest.mark.parametrize(
    ("key", "text"),
    {
        "tensor_parallel = 2": "tensor_parallel: ranks that share a model need fixed shapes, and",
        'fallback = "local"': "fallback: 'local': a local model needs fixed shapes, and 'image'",
        "chunk_rows = 8": "chunk_rows: cuts batches, and 'image' has free dimensions: remove one",
        'derivatives = ["vjp"]': "derivatives: 'image' has free dimensions: derivatives need fixed",
    }.items(),
)
def test_what_needs_fixed_shapes_is_refused_with_free_dimensions(line, key, text):
    assert line(IMAGES + key).startswith(f"coupling.toml: service.images.{text}")


def test_a_first_dimension_is_free_where_there_are_no_rows(load):
    text = """
[service.graph]
model = "graph:build"
rows = "none"
allow_empty = true
inputs = [{name = "nodes", dtype = "float32", shape = [-1, 4], max_shape = [100, 4]},
          {name = "edges", dtype = "int64", shape = [-1, 2], max_shape = [1000, 2]}]
outputs = [{name = "y", dtype = "float32", shape = [-1, 4], max_shape = [100, 4]}]
"""
    service = load(text).services[0]
    nodes, edges = service.inputs
    assert not nodes.has_rows and nodes.row_bytes == 1600 and edges.dims(None) == (1000, 2)
    assert nodes.fits((7, 4), None) and nodes.fits((1, 7, 4), 1) and not nodes.fits((7, 4), 7)
