"""From a bundle to a text generator that runs it, within what the session and this machine's memory take."""

from __future__ import annotations

import logging
import os
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from maskpro_deploy.backends.session import SessionLimits
from maskpro_deploy.manifest import Manifest
from maskpro_deploy.runtime.generate.generator import TextGenerator, context_length
from maskpro_deploy.runtime.generate.grammar_compiler import GrammarCompiler
from maskpro_deploy.runtime.generate.grammars import EXTRA
from maskpro_deploy.runtime.generate.scheduler import RuntimeConfig
from maskpro_deploy.runtime.generate.tokenizer import TextTokenizer
from maskpro_deploy.runtime.sessions.session import open_session
from maskpro_deploy.system.extras import missing

log = logging.getLogger(__name__)


def load(bundle: Path, config: RuntimeConfig | None = None) -> TextGenerator:
    """Open a bundle, a folder written by `maskpro-deploy export`, and start a text generator on it.

    Raises:
        InputError: not a bundle, or one that this provider cannot run.
        FormatError: a file is damaged.
        MachineError: the provider is not available here, or onnxruntime is not installed.
    """
    config = config or RuntimeConfig()
    manifest = Manifest.load(bundle, engines=False)
    context_length(manifest.model, config.max_model_len)
    if config.check_hashes:
        manifest.check_hashes(bundle)
    with ThreadPoolExecutor(1) as other:  # neither holds the interpreter's lock for long
        reading = other.submit(_read_tokenizer, bundle, manifest, config.chat_template)
        session = open_session(bundle, config)
        tokenizer, grammars, prepared = reading.result()
    session.greedy([0], 2)  # the first runs are slow: memory is allocated and weights are paged in
    if prepared is not None:
        prepared.result()
    return TextGenerator(session, tokenizer, limit_config(config, session.limits, manifest), grammars)


def _read_tokenizer(
    bundle: Path, manifest: Manifest, template: str | None
) -> tuple[TextTokenizer, GrammarCompiler, Future[object] | None]:
    """The tokenizer and the compiler of grammars; what that needs is prepared meanwhile."""
    tokenizer = TextTokenizer.load(bundle, manifest.model, template)
    grammars = GrammarCompiler(tokenizer, manifest.model)
    return tokenizer, grammars, None if missing(EXTRA) else grammars.prepare()


def limit_config(config: RuntimeConfig, limits: SessionLimits, manifest: Manifest) -> RuntimeConfig:
    """The settings, no larger than what the session can take."""
    if limits.max_batch is not None and limits.max_batch < config.max_num_seqs:
        log.warning("the engine was built for %d sequences at once, not for %d", limits.max_batch, config.max_num_seqs)
        config = replace(config, max_num_seqs=limits.max_batch)
    if config.prefix_caching and not limits.prefix_block:
        log.warning("prefix caching is off: here the cache cannot be taken apart, or tokens on top of others are read one by one")
        config = replace(config, prefix_caching=False)
    tokens = config.max_cache_tokens or limits.max_cache_tokens or _cache_tokens_in_memory(manifest)
    block = limits.prefix_block or config.prefix_block
    return replace(config, max_cache_tokens=tokens, max_prefill_rows=limits.max_prefill_rows, prefix_block=block)


def _cache_tokens_in_memory(manifest: Manifest) -> int:
    """Tokens whose keys and values fill an eighth of the memory: a step holds the old and the new cache, a join a third."""
    shape = manifest.model
    token_bytes = 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * (4 if manifest.graph.dtype == "fp32" else 2)
    return max(1, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 8 // token_bytes)
