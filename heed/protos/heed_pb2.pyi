from heed.protos import open_inference_pb2 as _open_inference_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Requests(_message.Message):
    __slots__ = ("requests", "cancelled", "sent_us")
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    SENT_US_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[_open_inference_pb2.ModelInferRequest]
    cancelled: _containers.RepeatedScalarFieldContainer[str]
    sent_us: int
    def __init__(self, requests: _Optional[_Iterable[_Union[_open_inference_pb2.ModelInferRequest, _Mapping]]] = ..., cancelled: _Optional[_Iterable[str]] = ..., sent_us: _Optional[int] = ...) -> None: ...

class Answers(_message.Message):
    __slots__ = ("answers",)
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    answers: _containers.RepeatedCompositeFieldContainer[_open_inference_pb2.ModelStreamInferResponse]
    def __init__(self, answers: _Optional[_Iterable[_Union[_open_inference_pb2.ModelStreamInferResponse, _Mapping]]] = ...) -> None: ...
