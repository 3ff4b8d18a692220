"""A running server asked for a bundle's contract, over gRPC: what `heed verify BUNDLE --endpoint` does.

Letters: B rows of a request.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from grpc import StatusCode

from heed.bundle.contract import CPU, Case, Finding, check, has_budget
from heed.bundle.sequence_packing import Arrays
from heed.cli.server_options import ServerOptions, explain_error
from heed.client import Answer, CallError, Client
from heed.client.batches import stacked

PAUSE = 0.25  # seconds between attempts
# Worth another attempt: the server is starting, gone for a moment, or busy.
LATER = {StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED, StatusCode.RESOURCE_EXHAUSTED}
# What a server may say to a case. It is an answer, and not the reference's; every other error is about the call.
WRONG = {StatusCode.INVALID_ARGUMENT, StatusCode.FAILED_PRECONDITION, StatusCode.INTERNAL}
TOO_LARGE = "too_large"  # the server's reason for refusing a request or its answer
GRPC_TOO_LARGE = "message larger than max"  # how gRPC itself says so, on either side: it knows no reasons


class CannotAsk(RuntimeError):
    """There is nothing to compare: nobody answers, or not for such a model."""


class OtherBundle(RuntimeError):
    """The answers come from another bundle."""

    def __init__(self, address: str, expected: str, found: str) -> None:
        super().__init__(f"{address} serves another bundle: it answers from {found}, this one is {expected}")
        self.found = found


class TooLarge(RuntimeError):
    """Not even one output of one row fits into a message there."""


@dataclass
class Endpoint:
    """One model at one address.

    Each request has a connection of its own: behind a load balancer that is how every server gets its share of the
    questions, so that a half-done rollout is noticed.
    """

    address: str
    model: str
    digest: str  # that answers must come from
    seconds: float  # how long to wait for each answer, attempts included
    server: ServerOptions = ServerOptions()
    precision: str = "fp32"  # of the last answer, as the provider
    provider: str = CPU
    left_out: list[str] = field(default_factory=list)  # cases that do not fit into a message

    def check(self, cases: Iterable[Case]) -> Iterator[Finding]:
        """Compares the endpoint's answers with the contract, by the budget of the precision and provider they name.

        Raises:
            CannotAsk: nobody answers in time, there is no such model, or answers say nothing of where they come from.
            OtherBundle: an answer comes from another bundle.
        """
        for case in cases:
            try:
                yield from self._check_case(case)
            except TooLarge:
                self.left_out.append(case.name)

    def _check_case(self, case: Case) -> list[Finding]:
        try:
            outputs, refused = self.ask(case.inputs, list(case.outputs)), None
        except CallError as error:
            outputs, refused = {}, error

        def answer(inputs: Arrays, names: list[str]) -> Arrays:
            if refused:
                raise refused
            return outputs

        return list(check([case], answer, self.precision, self.provider))

    def ask(self, inputs: Arrays, outputs: list[str]) -> Arrays:
        """The answer to one request, which may be asked for in parts where it is too large for one message.

        Raises:
            CallError: the server refuses it.
            TooLarge: it cannot be cut into parts that are small enough.
            CannotAsk, OtherBundle: see `check`.
        """
        try:
            return self._send(inputs, outputs)
        except CallError as error:
            if not _is_too_large(error):
                raise
            rows = len(next(iter(inputs.values())))
            if rows > 1:
                halves = slice(None, rows // 2), slice(rows // 2, None)
                return _joined(*(self.ask(_rows(inputs, half), outputs) for half in halves))
            if len(outputs) > 1:
                half = len(outputs) // 2
                return self.ask(inputs, outputs[:half]) | self.ask(inputs, outputs[half:])
            raise TooLarge(error.details) from None

    def _send(self, inputs: Arrays, outputs: list[str]) -> Arrays:
        """One message, and another if the server is not ready or too busy for it."""
        until = time.monotonic() + self.seconds
        reason: CallError | None = None
        while True:
            try:
                return self._read(self._call(inputs, outputs, max(until - time.monotonic(), PAUSE)))
            except CallError as error:
                if error.code in WRONG or _is_too_large(error):
                    raise
                if reason is None or error.code is not StatusCode.DEADLINE_EXCEEDED:  # which says nothing of why
                    reason = error
                if error.code not in LATER or time.monotonic() + PAUSE > until:
                    raise CannotAsk(f"{self.address} gave no answer: {explain_error(reason)}") from None
            time.sleep(PAUSE)

    def _call(self, inputs: Arrays, outputs: list[str], seconds: float) -> Answer:
        with self.server.client(Client, self.address, self.model, seconds) as client:
            try:
                answer: Answer = client.infer(inputs, outputs)
                return answer
            except ValueError:
                raise CannotAsk(f"{self.address} answers in a form that heed's servers do not have") from None

    def _read(self, answer: Answer) -> Arrays:
        """Looks at where an answer comes from before it looks at the answer."""
        if not answer.digest:
            raise CannotAsk(f"{self.address} does not say which bundle it answers from; is it heed's server?")
        if answer.digest != self.digest:
            raise OtherBundle(self.address, self.digest, answer.digest)
        if not has_budget(answer.precision, answer.provider):
            raise CannotAsk(f"{self.address} answers in {answer.precision} on {answer.provider}, which has no budget")
        self.precision, self.provider = answer.precision, answer.provider
        return answer.outputs


def _is_too_large(error: CallError) -> bool:
    by_grpc = error.code is StatusCode.RESOURCE_EXHAUSTED and GRPC_TOO_LARGE in error.details
    return by_grpc or error.reason == TOO_LARGE


def _rows(inputs: Arrays, rows: slice) -> Arrays:
    return {name: array[rows] for name, array in inputs.items()}


def _joined(first: Arrays, second: Arrays) -> Arrays:
    """Rows below rows, `[B, ...]`, padded to the larger sizes as a server pads: with zeros, or with ""."""
    return {name: stacked([array, second[name]]) for name, array in first.items()}
