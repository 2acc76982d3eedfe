"""Quality of a language model, measured so that the figure can be compared.

Everything here takes models as callables (`CausalLM`): a torch checkpoint, an ONNX bundle and an engine are measured by the same
code on the same tokens. A perplexity without its protocol compares with nothing, so protocols have names and are stated whole.

    protocol      how text becomes windows, and which of their tokens are scored
    published     the protocols of the papers, by name
    corpora       the texts they read: rows of local files or of the Hub
    likelihoods   from logits to log-likelihoods and KL
    scores        windows of tokens, scored by one or several models
    figures       perplexity, ratio, KL and agreement from the scores
    batches       rows of different lengths through a model
    harness       a model behind the interface of lm-evaluation-harness (needs the `eval` extra)
    tasks         its tasks, run as a library
    log, result   results on disk as they come; a finished evaluation as data and tables

What enters: models and texts. What leaves: figures with their protocol. May import: the data, not what runs models.
"""

from maskpro_deploy.evaluate.figures import Comparison, Perplexity, compare, compare_all, comparison_of, perplexity, perplexity_of
from maskpro_deploy.evaluate.protocol import EvalProtocol, Windows
from maskpro_deploy.evaluate.scores import CausalLM, WindowScore, log_probabilities, score_windows

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
