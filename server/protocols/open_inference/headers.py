"""What a request says beside the values of its inputs: read and checked once for all requests that say the same.

Callers repeat themselves. Names, datatypes, outputs and parameters are those of the request before, and shapes those of
some request before: what costs most to check is known already.
"""

from dataclasses import dataclass
from functools import lru_cache

from heed.bundle import Manifest
from heed.bundle.packing import Arrays
from heed.protos.open_inference_pb2 import ModelInferRequest
from heed.server.errors import InvalidArgument
from heed.server.protocols.open_inference.classification import check_classes
from heed.server.protocols.open_inference.parameters import Options, read_classes, read_options
from heed.server.protocols.open_inference.tensors import (
    WireTensor,
    check_counts,
    describe_inputs,
    read_contents,
    read_raw,
)
from heed.server.requests.preprocess import RequestSpec, check_form

REMEMBERED = 1024  # headers of one model, those that came last
LONGEST = 2**11  # bytes of a header that is remembered


@dataclass(frozen=True)
class RequestHeader:
    """Known to be right."""

    options: Options
    classes: dict[str, int]  # how many of the best ones shall stand in an output's place
    inputs: dict[str, WireTensor]
    has_contents: bool  # values in fields of the inputs
    form: RequestSpec

    def read(self, request: ModelInferRequest, raws: list[bytes]) -> Arrays:
        """The values of the inputs, from the request or from its raw ones (see `HeaderCache.take`).

        Raises:
            InvalidArgument: they do not fill their shapes, or are not where they should be.
        """
        if not raws:
            return read_contents(self.inputs, request)
        if self.has_contents:
            raise InvalidArgument("raw_input_contents came together with contents; a request has either")
        return read_raw(self.inputs, raws)


class HeaderCache:
    """Those of the requests for one model."""

    def __init__(self, manifest: Manifest, max_batch: int = 2**31) -> None:
        """`max_batch` rows are the most that a request may have."""
        self._manifest, self._max_batch = manifest, max_batch
        self._known = lru_cache(REMEMBERED)(lambda raw: self._check(ModelInferRequest.FromString(raw)))

    def take(self, request: ModelInferRequest) -> tuple[RequestHeader, list[bytes]]:
        """A request's header, and its raw values, which the request has no longer afterwards.

        Raises:
            InvalidArgument: something is wrong with it.
        """
        check_counts(request)
        raws = list(request.raw_input_contents)
        del request.raw_input_contents[:]
        return self._header(request) if raws else self._check(request), raws

    def _header(self, request: ModelInferRequest) -> RequestHeader:
        id, request.id = request.id, ""  # every request has its own
        raw = request.SerializeToString()
        request.id = id
        return self._known(raw) if len(raw) <= LONGEST else self._check(request)

    def _check(self, request: ModelInferRequest) -> RequestHeader:
        options, classes = read_options(request), read_classes(request)
        check_classes(self._manifest, classes)
        inputs = describe_inputs(self._manifest, request, self._max_batch)
        form = check_form(self._manifest, inputs, [output.name for output in request.outputs])
        has_contents = any(tensor.HasField("contents") for tensor in request.inputs)
        return RequestHeader(options, classes, inputs, has_contents, form)
