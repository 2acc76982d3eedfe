"""Answers other than 200, in OpenAI's shape, and which of them each error of the library becomes."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from maskpro_deploy.errors import InputError, MaskProError, MissingExtraError
from maskpro_deploy.runtime.generate.generator import ContextLengthError, OverloadedError, TookTooLongError
from maskpro_deploy.runtime.generate.grammars import GrammarError
from maskpro_deploy.runtime.generate.sampling_params import SamplingError
from maskpro_deploy.runtime.http.api.refused import explain_missing
from maskpro_deploy.runtime.http.request_log import ERROR

_SHOWN_PATH = 200  # characters
_CLIENT_CLOSED = 499  # nobody reads it; it only shows in logs


class ApiError(Exception):
    """An answer other than 200."""

    def __init__(
        self, status: int, message: str, kind: str, code: str | None = None, param: str | None = None, *, retry_after_s: int = 1
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.status = status
        self.kind = kind
        self.code = code
        self.param = param

    def body(self) -> dict[str, object]:
        message = str(self).encode(errors="replace").decode()  # what a client sent may hold halves of surrogate pairs
        param = self.param and self.param.encode(errors="replace").decode()
        return {"error": {"message": message, "type": self.kind, "param": param, "code": self.code}}

    def response(self) -> JSONResponse:
        headers = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": str(self.retry_after_s)}}
        return JSONResponse(self.body(), self.status, headers.get(self.status))


def invalid_request(message: str, code: str | None = None, param: str | None = None) -> ApiError:
    """A request that cannot be served as it is."""
    return ApiError(400, message, "invalid_request_error", code, param)


def to_api_error(error: MaskProError) -> ApiError:
    """What a library error is over HTTP."""
    message = str(error)
    match error:
        case OverloadedError():
            return ApiError(503, message, "overloaded_error", "server_overloaded", retry_after_s=error.retry_after_s)
        case TookTooLongError():
            return ApiError(504, message, "timeout_error", "request_timeout")
        case ContextLengthError():
            return invalid_request(message, "context_length_exceeded", "max_tokens")
        case SamplingError() | GrammarError():
            return invalid_request(message, "invalid_value", error.field)
        case InputError():
            return invalid_request(message)
        case MissingExtraError():
            return invalid_request(f"this server lacks what the request needs: {' '.join(message.split())}", "missing_extra")
    return ApiError(500, message, "server_error", "internal_error")


async def answer_error(request: Request, error: Exception) -> Response:
    """What a client gets where a route raised."""
    headers: Mapping[str, str] | None = None
    match error:
        case ApiError():
            answer = error
        case MaskProError():
            answer = to_api_error(error)
        case HTTPException():
            answer, headers = _to_unrouted_error(request, error), error.headers
        case ClientDisconnect():
            return Response(status_code=_CLIENT_CLOSED)
        case _:
            answer = ApiError(500, "the server made an error; see its log.", "server_error", "internal_error")
    request.scope[ERROR] = answer.code or answer.kind
    response = answer.response()
    response.headers.update(headers or {})
    return response


def _to_unrouted_error(request: Request, error: HTTPException) -> ApiError:
    """The error of a path that is not served, or not with this method."""
    kind, code, reason = "invalid_request_error", None, error.detail
    if error.status_code == 404:
        kind = "not_found_error"
        reason, code = explain_missing(request.url.path)
    elif error.status_code == 405:
        code, reason = "method_not_allowed", f"this route takes {(error.headers or {}).get('Allow', 'other methods')}"
    shown = f"{request.method[:20]} {request.url.path[:_SHOWN_PATH]}"
    return ApiError(error.status_code, f"{shown}: {reason}.", kind, code)


HANDLED = (ApiError, MaskProError, HTTPException, ClientDisconnect, Exception)
