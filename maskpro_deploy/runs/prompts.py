"""The requests of a load: random tokens, running text, or the texts of a file; the same ones for all servers."""

from __future__ import annotations

from collections.abc import Mapping

from maskpro_deploy.bench.load.openai_client import OpenAIClient
from maskpro_deploy.bench.load.sending.generator import Source
from maskpro_deploy.bench.load.sending.schedule import cut_text_windows, draw_random_tokens, take_prompts
from maskpro_deploy.data import load_text
from maskpro_deploy.errors import InputError
from maskpro_deploy.runs.load_options import BUILTIN, RANDOM, LoadOptions

WORDS_PER_TOKEN = 0.75  # English, about; the server's own count stands in the result
_SAMPLE_DOCUMENTS = 20


async def make_source(clients: Mapping[str, OpenAIClient], options: LoadOptions) -> tuple[Source, list[str]]:
    """Where requests come from, and remarks on that.

    Raises:
        InputError: the servers have different vocabularies, or the prompts cannot be read.
    """
    text = load_text(BUILTIN)
    vocabulary = await _tokenize_sample(clients, "\n".join(text.documents[:_SAMPLE_DOCUMENTS]))
    if options.prompts not in (RANDOM, BUILTIN):
        return take_prompts(load_text(options.prompts).documents, options.output_len), []
    words = max(1, round(options.input_len * WORDS_PER_TOKEN))
    if options.prompts == RANDOM and options.endpoint == "completions" and vocabulary is not None:
        # ids of ordinary text: neither special tokens nor ids beyond the vocabulary
        return draw_random_tokens(vocabulary, options.input_len, options.output_len), []
    notes = []
    if options.prompts == RANDOM:
        chat = options.endpoint == "chat"
        why = "A chat takes no token ids" if chat else "The server has no /tokenize to ask for token ids"
        notes.append(f"{why}: prompts are {words} words of running text, about {options.input_len} tokens.")
    return cut_text_windows(text.documents, words, options.output_len), notes


async def _tokenize_sample(clients: Mapping[str, OpenAIClient], sample: str) -> list[int] | None:
    """The tokens that occur in a text, which have to be the same for all servers; None if one does not tell them."""
    tokens = {name: await client.tokenize(sample) for name, client in clients.items()}
    known = [t for t in tokens.values() if t is not None]
    if len(known) == 2 and known[0] != known[1]:
        raise InputError(
            f"{' and '.join(tokens)} have different vocabularies: a token of one is not a token of the other.\n"
            "Measure them in separate runs."
        )
    return sorted(set(known[0])) if len(known) == len(clients) else None
