"""Answers other than 200, in OpenAI's shape, and which of them each error of the library becomes."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from maskpro_deploy.errors import InputError, MaskProError, MissingExtraError
from maskpro_deploy.runtime.generate.generator import ContextLengthError, OverloadedError, TookTooLongError
from maskpro_deploy.runtime.generate.grammars import GrammarError
from maskpro_deploy.runtime.generate.sampling_params import SamplingError

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
    match error:
        case ApiError():
            return error.response()
        case MaskProError():
            return to_api_error(error).response()
        case HTTPException():
            kind = "not_found_error" if error.status_code == 404 else "invalid_request_error"
            return ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}.", kind).response()
        case ClientDisconnect():
            return Response(status_code=_CLIENT_CLOSED)
    return ApiError(500, "the server made an error; see its log.", "server_error", "internal_error").response()


HANDLED = (ApiError, MaskProError, HTTPException, ClientDisconnect, Exception)
