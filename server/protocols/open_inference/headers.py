"""A request's header: everything but the values of its inputs. Equal headers are validated once.

Callers repeat themselves. Names, datatypes, outputs and parameters are mostly those of the request before, and shapes
those of an earlier request: so what costs most to validate is known already.
"""

from dataclasses import dataclass
from functools import lru_cache

from heed.bundle import Manifest
from heed.bundle.sequence_packing import Arrays
from heed.protos.open_inference_pb2 import ModelInferRequest
from heed.server.errors import InvalidArgument
from heed.server.protocols.open_inference.classification import check_classes
from heed.server.protocols.open_inference.parameters import Options, read_classes, read_options
from heed.server.protocols.open_inference.tensors import (
    WireTensor,
    describe_inputs,
    read_contents,
    read_raw,
)
from heed.server.requests.preprocess import Preprocessor
from heed.server.requests.validation import RequestSpec

CACHED = 1024  # headers of one model, the last ones
LONGEST_CACHED = 2**11  # bytes
MAX_TENSORS = 64  # of each kind in a request; no model has as many


@dataclass(frozen=True)
class RequestHeader:
    """A valid header."""

    options: Options
    classes: dict[str, int]  # how many of the best classes replace an output
    inputs: dict[str, WireTensor]
    has_contents: bool  # some values are in fields of the inputs
    spec: RequestSpec

    def read(self, request: ModelInferRequest, raws: list[bytes]) -> Arrays:
        """The values of the inputs, from the request or from its raw contents (see `HeaderCache.split`).

        Raises:
            InvalidArgument: they do not fill their shapes, or are not where they should be.
        """
        if not raws:
            return read_contents(self.inputs, request)
        if self.has_contents:
            raise InvalidArgument("raw_input_contents came together with contents; a request has either")
        return read_raw(self.inputs, raws)


def _check_counts(request: ModelInferRequest) -> None:
    """Before anything is done for each of them: a message has room for millions that are empty.

    Raises:
        InvalidArgument: there are more than any request needs.
    """
    counts = len(request.inputs), len(request.outputs), len(request.raw_input_contents)
    if max(counts) > MAX_TENSORS:
        came = "{} inputs, {} outputs and {} raw_input_contents came".format(*counts)
        raise InvalidArgument(f"{came}; a request has at most {MAX_TENSORS} of each")


class HeaderCache:
    """The headers of the requests for one model."""

    def __init__(self, manifest: Manifest, preprocessor: Preprocessor) -> None:
        self._manifest, self._preprocessor = manifest, preprocessor
        self._cached = lru_cache(CACHED)(lambda raw: self._validated(ModelInferRequest.FromString(raw)))

    def split(self, request: ModelInferRequest) -> tuple[RequestHeader, list[bytes]]:
        """A request's header, and its raw contents, which are removed from the request.

        Raises:
            InvalidArgument: something is wrong with the header.
        """
        _check_counts(request)
        raws = list(request.raw_input_contents)
        if not raws:
            return self._validated(request), raws
        del request.raw_input_contents[:]
        id, request.id = request.id, ""  # every request has its own
        key = request.SerializeToString()
        request.id = id
        return self._cached(key) if len(key) <= LONGEST_CACHED else self._validated(request), raws

    def _validated(self, request: ModelInferRequest) -> RequestHeader:
        options, classes = read_options(request), read_classes(request)
        check_classes(self._manifest, classes)
        inputs = describe_inputs(self._manifest, request, self._preprocessor.limits.max_batch)
        spec = self._preprocessor.validate(inputs, [output.name for output in request.outputs])
        has_contents = any(tensor.HasField("contents") for tensor in request.inputs)
        return RequestHeader(options, classes, inputs, has_contents, spec)
