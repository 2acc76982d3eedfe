"""Quality of a language model, measured so that the figure can be compared.

Everything here takes models as callables (`CausalLM`): a torch checkpoint, an ONNX bundle and an engine are measured by the same
code on the same tokens. A perplexity without its protocol compares with nothing, so protocols have names and are stated whole.

    protocol      how text becomes windows, and which of their tokens are scored
    published     the protocols of the papers, by name
    corpora       the texts they read: rows of local files or of the Hub
    scores        log-likelihoods window by window; perplexity, ratio, KL, agreement
    store         results of windows on disk as they come: what was done is not done again
    harness       a model behind the interface of lm-evaluation-harness (needs the `eval` extra)
    tasks         its tasks, run as a library
"""

from maskpro_deploy.evaluate.protocol import EvalProtocol, Windows
from maskpro_deploy.evaluate.scores import (
    CausalLM,
    Comparison,
    Perplexity,
    WindowScore,
    compare,
    compare_all,
    comparison_of,
    log_probabilities,
    perplexity,
    perplexity_of,
    score_windows,
)

__all__ = [
    "CausalLM",
    "Comparison",
    "EvalProtocol",
    "Perplexity",
    "WindowScore",
    "Windows",
    "compare",
    "compare_all",
    "comparison_of",
    "log_probabilities",
    "perplexity",
    "perplexity_of",
    "score_windows",
]
