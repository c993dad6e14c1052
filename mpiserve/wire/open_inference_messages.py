"""The messages of the Open Inference Protocol by gRPC, as far as a server needs them.

They are made of the protocol's numbers when this is imported, in a pool of their own: no compiler
of protobuf is needed, and a program may have somebody else's stubs beside them.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

PACKAGE = "inference"
SERVICE = "/inference.GRPCInferenceService/"
MODEL = "string name = 1; string version = 2"
# Types, names and numbers of the fields. A map is the same on the wire as a list of its entries,
# and an enumeration the same as its numbers.
MESSAGES = {
    "Empty": "",
    "Live": "bool live = 1",
    "Ready": "bool ready = 1",
    "Model": MODEL,
    "ServerMetadata": f"{MODEL}; repeated string extensions = 3",
    "TensorMetadata": "string name = 1; string datatype = 2; repeated int64 shape = 3",
    "ModelMetadata": """
        string name = 1; repeated string versions = 2; string platform = 3;
        repeated TensorMetadata inputs = 4; repeated TensorMetadata outputs = 5
    """,
    "Parameter": """
        oneof bool bool_param = 1; oneof int64 int64_param = 2; oneof string string_param = 3;
        oneof double double_param = 4; oneof uint64 uint64_param = 5
    """,
    "ParameterEntry": "string key = 1; Parameter value = 2",
    "Contents": """
        repeated bool bool_contents = 1; repeated int32 int_contents = 2;
        repeated int64 int64_contents = 3; repeated uint32 uint_contents = 4;
        repeated uint64 uint64_contents = 5; repeated float fp32_contents = 6;
        repeated double fp64_contents = 7; repeated bytes bytes_contents = 8
    """,
    "Tensor": """
        string name = 1; string datatype = 2; repeated int64 shape = 3;
        repeated ParameterEntry parameters = 4; Contents contents = 5
    """,
    "Wanted": "string name = 1; repeated ParameterEntry parameters = 2",
    "ModelInferRequest": """
        string model_name = 1; string model_version = 2; string id = 3;
        repeated ParameterEntry parameters = 4; repeated Tensor inputs = 5;
        repeated Wanted outputs = 6; repeated bytes raw_input_contents = 7
    """,
    "ModelInferResponse": """
        string model_name = 1; string model_version = 2; string id = 3;
        repeated ParameterEntry parameters = 4; repeated Tensor outputs = 5;
        repeated bytes raw_output_contents = 6
    """,
    "ModelStreamInferResponse": """
        string error_message = 1; ModelInferResponse infer_response = 2
    """,
    "ConfiguredInput": "string name = 1; int32 data_type = 2; repeated int64 dims = 4",
    "ConfiguredOutput": "string name = 1; int32 data_type = 2; repeated int64 dims = 3",
    "Config": """
        string name = 1; string platform = 2; int32 max_batch_size = 4;
        repeated ConfiguredInput input = 5; repeated ConfiguredOutput output = 6
    """,
    "ModelConfig": "Config config = 1",
    "Duration": "uint64 count = 1; uint64 ns = 2",
    "Inference": """
        Duration success = 1; Duration fail = 2; Duration queue = 3; Duration compute_input = 4;
        Duration compute_infer = 5; Duration compute_output = 6; Duration cache_hit = 7;
        Duration cache_miss = 8
    """,
    "Batches": "uint64 batch_size = 1",
    "Counted": """
        string name = 1; string version = 2; uint64 last_inference = 3;
        uint64 inference_count = 4; uint64 execution_count = 5; Inference inference_stats = 6;
        repeated Batches batch_stats = 7
    """,
    "ModelStatistics": "repeated Counted model_stats = 1",
    "RepositoryIndexRequest": "string repository_name = 1; bool ready = 2",
    "Entry": "string name = 1; string version = 2; string state = 3; string reason = 4",
    "RepositoryIndex": "repeated Entry models = 1",
    "Change": "string model_name = 2; repeated ParameterEntry parameters = 3",
}
DATA_TYPES = (  # in the order of their numbers
    *("TYPE_INVALID", "TYPE_BOOL", "TYPE_UINT8", "TYPE_UINT16", "TYPE_UINT32", "TYPE_UINT64"),
    *("TYPE_INT8", "TYPE_INT16", "TYPE_INT32", "TYPE_INT64", "TYPE_FP16", "TYPE_FP32"),
    *("TYPE_FP64", "TYPE_STRING", "TYPE_BF16"),
)


def _pool() -> DescriptorPool:
    file = FileDescriptorProto(name="mpiserve.proto", package=PACKAGE, syntax="proto3")
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field in fields.split(";"):
            if field.strip():
                _add(message, *field.split())
    pool = DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return pool


def _add(message: DescriptorProto, *words: str) -> None:
    *label, kind, name, _, number = words
    field = message.field.add(name=name, number=int(number))
    field.label = field.LABEL_REPEATED if label == ["repeated"] else field.LABEL_OPTIONAL
    if kind in MESSAGES:
        field.type, field.type_name = field.TYPE_MESSAGE, f".{PACKAGE}.{kind}"
    else:
        field.type = FieldDescriptorProto.Type.Value(f"TYPE_{kind.upper()}")
    if label == ["oneof"]:
        if not message.oneof_decl:
            message.oneof_decl.add(name="choice")
        field.oneof_index = 0


_POOL = _pool()


def message(name: str) -> Any:
    """Return the class of a message of MESSAGES."""
    return GetMessageClass(_POOL.FindMessageTypeByName(f"{PACKAGE}.{name}"))
