"""What can go wrong between the server and its engine."""

from __future__ import annotations

from diffulex_core.plugin import DiffulexError, RequestError


class RequestRefused(RequestError):
    """The engine cannot serve a request.

    `kind` names the engine's error; `user_error` tells whether the request is at fault.
    """

    def __init__(self, message: str, *, kind: str, user_error: bool) -> None:
        self.kind, self.user_error = kind, user_error
        super().__init__(message)


class EngineUnavailable(DiffulexError, RuntimeError):
    """No engine takes requests now: it is loading, was closed, or died. Try again later."""


class EngineDied(EngineUnavailable):
    """The engine stopped while it was needed; `kind` names the error that ended it."""

    def __init__(self, message: str, *, kind: str = "EngineDied") -> None:
        self.kind = kind
        super().__init__(message)


class CallRejected(DiffulexError, RuntimeError):
    """The engine could not do what it was asked, such as to profile without a profiler.

    `user_error` tells whether what was asked makes no sense.
    """

    def __init__(self, message: str, *, user_error: bool = False) -> None:
        self.user_error = user_error
        super().__init__(message)
