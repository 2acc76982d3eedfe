"""Routes of OpenAI's API, and of other servers, that clients try and that are not served: what to say, and what to use instead.

The answer is 404, not 501: clients try a 5xx again, which would never help.
"""

from __future__ import annotations

_TEXT_ONLY = "this server generates text: use /v1/chat/completions, /v1/responses or /v1/completions"
_STORES_NOTHING = "this server stores nothing: send the whole conversation with each request"
_NO_FILES = "this server takes no files and no batches: send each request on its own"
_NO_SCORES = "this server gives no scores to pairs of texts: /v1/completions with echo and logprobs scores one text"
# the beginning of a path, whole segments -> what to say
REFUSED = {
    "/v1/embeddings": "the model here generates text and gives no embeddings: serve an embedding model elsewhere",
    "/v1/audio": _TEXT_ONLY,
    "/v1/images": _TEXT_ONLY,
    "/v1/videos": _TEXT_ONLY,
    "/v1/realtime": "this server streams over HTTP: send stream: true to /v1/chat/completions or /v1/responses",
    "/v1/moderations": "this server judges no texts: ask the model in a chat",
    "/v1/files": _NO_FILES,
    "/v1/uploads": _NO_FILES,
    "/v1/batches": _NO_FILES,
    "/v1/assistants": _STORES_NOTHING,
    "/v1/threads": _STORES_NOTHING,
    "/v1/conversations": _STORES_NOTHING,
    "/v1/responses": _STORES_NOTHING,
    "/v1/chat/completions": _STORES_NOTHING,
    "/v1/vector_stores": _STORES_NOTHING,
    "/v1/containers": _STORES_NOTHING,
    "/v1/evals": "models are evaluated with `maskpro-deploy eval` and `maskpro-lm-eval`",
    "/v1/fine_tuning": "models are trained with `maskpro-deploy learn` and `maskpro-deploy recover`",
    "/v1/messages": "this server does not speak Anthropic's API: use /v1/chat/completions",
    "/v1/edits": "this route is deprecated: use /v1/chat/completions",
    "/v1/engines": "this route is deprecated: use /v1/models",
    "/v1/rerank": _NO_SCORES,
    "/rerank": _NO_SCORES,
    "/v1/score": _NO_SCORES,
    "/score": _NO_SCORES,
    "/pooling": _NO_SCORES,
    "/classify": _NO_SCORES,
}
_UNKNOWN = "there is no such route. This server has /v1/chat/completions, /v1/responses, /v1/completions and /v1/models"


def explain_missing(path: str) -> tuple[str, str]:
    """The reason why a path is not served, in words, and its code."""
    for beginning, reason in REFUSED.items():
        if path == beginning or path.startswith(f"{beginning}/"):
            return reason, "unsupported_endpoint"
    return _UNKNOWN, "unknown_endpoint"
