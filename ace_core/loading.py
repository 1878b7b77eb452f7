"""Loading a network and its tokenizer from the hub, a folder or a GGUF file, with errors people can act on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ace_core.errors import EngineError

__all__ = ["choose_device", "load_gguf", "load_pretrained", "readable_errors"]

_HUB_SECONDS = 10.0


def choose_device(name: str = "auto") -> torch.device:
    """``auto`` (CUDA, then MPS, then CPU), ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.

    Raises:
        EngineError: if the device is unknown or absent.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise EngineError(f"Unknown device '{name[:40]}': choose auto, cpu, cuda or mps.") from None
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not present.get(device.type, False):
        raise EngineError(f"This machine has no '{name}' device: choose auto or cpu.")
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        raise EngineError(f"This machine has {torch.cuda.device_count()} CUDA devices: '{name}' is not one of them.")
    return device


def load_gguf(path: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """Network and tokenizer of a GGUF file, weights dequantised to ``dtype``.

    Raises:
        EngineError: for a missing or unreadable file.
    """
    import transformers

    if not path.is_file():
        raise EngineError(f"There is no file {path}: check the path.")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise EngineError(f"{path.name} is not a GGUF file: choose a .gguf model.")
    config = getattr(transformers, "GgufConfig", None)
    extra = {} if config is None else {"quantization_config": config(dequantize=True)}
    folder, name = str(path.parent), path.name
    with readable_errors(path.name), _quiet():
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name)
        network = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=dtype, **extra)
    if hasattr(network.config, "quantization_config"):
        delattr(network.config, "quantization_config")  # the weights are plain now, and may be saved as such
    return network.eval(), tokenizer


def load_pretrained(
    source: str, dtype: torch.dtype | str, device: torch.device, device_map: str | None, revision: str | None
) -> tuple[Any, Any]:
    """Network and tokenizer of a hub id or a local folder; remote code and pickled weights are refused.

    Args:
        source: hub id or folder.
        dtype: weights' dtype, or ``"auto"`` for the checkpoint's own.
        device: where a model that fits one device goes.
        device_map: accelerate's placement (``"auto"``, ``"balanced"``, ``"sequential"``) for one that does not.
        revision: branch, tag or commit on the hub.

    Raises:
        EngineError: one sentence for an unreachable hub, gated or unknown model, bad folder or too little memory.
    """
    import transformers

    folder = Path(source)
    if source.startswith((".", "/", "~")) or folder.exists():
        folder = folder.expanduser()
        if not folder.is_dir():
            raise EngineError(f"There is no model folder {source}: check the path.")
        if not (folder / "config.json").is_file():
            raise EngineError(f"{source} holds no config.json: choose a folder saved by transformers.")
        source, found = str(folder), {}
    else:
        found = _where(source, revision)
    options: dict[str, Any] = {"trust_remote_code": False, **found}
    if revision:
        options["revision"] = revision
    placement = {"device_map": device_map} if device_map else {}
    with readable_errors(source), _quiet():
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
        network = transformers.AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, use_safetensors=True, **placement, **options
        )
        if not device_map:
            network.to(device)  # type: ignore[arg-type]
    return network.eval(), tokenizer


def _where(name: str, revision: str | None) -> dict[str, Any]:
    """Only the cache where the hub does not answer at all: loading would ask again for every file, half a minute each.
    What the hub answers is left for loading to make sense of."""
    from huggingface_hub import constants, model_info
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:
        return {}
    try:
        model_info(name, revision=revision, timeout=_HUB_SECONDS)
    except (HfHubHTTPError, ValueError):
        return {}
    except Exception:  # no connection, no name, no answer in time: each a class of the HTTP library of the day
        return {"local_files_only": True}
    return {}


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars on the terminal: progress is reported through callbacks."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def readable_errors(name: str) -> Iterator[None]:
    """Turn what loading libraries raise into one :class:`EngineError` sentence."""
    try:
        yield
    except EngineError:
        raise
    except (MemoryError, torch.OutOfMemoryError):
        raise EngineError(
            f"There is too little memory for {name}: choose a smaller model or device_map 'auto'."
        ) from None
    except Exception as error:
        raise EngineError(_sentence(name, error)) from error


def _sentence(name: str, error: Exception) -> str:
    from huggingface_hub import constants

    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and len(chain) < 12:
        chain.append(cause)  # type: ignore[arg-type]
    kinds = {type(e).__name__ for e in chain}
    text = " ".join(str(e) for e in chain)
    if "GatedRepoError" in kinds or "gated repo" in text:
        return f"{name} is gated: accept its licence on the hub and run 'hf auth login', then try again."
    if "RepositoryNotFoundError" in kinds or "is not a valid model identifier" in text or "404" in text:
        return f"The hub has no model named {name}: check the spelling, or log in if it is private."
    if "RevisionNotFoundError" in kinds:
        return f"{name} has no such revision: check the branch, tag or commit."
    if "HFValidationError" in kinds or "Repo id must" in text:
        return f"'{name}' is not a model name: write it as owner/model, or give a folder or a .gguf file."
    offline = {"OfflineModeIsEnabled", "LocalEntryNotFoundError", "ConnectionError", "ConnectError", "ConnectTimeout"}
    if kinds & offline or "couldn't connect" in text or "Cannot reach" in text or "offline mode" in text.lower():
        hint = " (offline mode is on)" if constants.HF_HUB_OFFLINE else ""
        return (
            f"The hub can't be reached{hint}, and {name} is not in the local cache: check the network or give a folder."
        )
    if "trust_remote_code" in text:
        return f"{name} needs code of its own, which is never run here: choose a model that transformers supports."
    if "out of memory" in text.lower() or "not enough memory" in text.lower():
        return f"There is too little memory for {name}: choose a smaller model or device_map 'auto'."
    if "SafetensorError" in kinds or "safetensors" in text:
        return f"The weights of {name} are not readable safetensors: download the model again or choose another."
    if "Unrecognized" in text or "does not recognize this architecture" in text or "KeyError" in kinds:
        return f"{name} is of a kind that this version of transformers does not know: upgrade it or choose another."
    first = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    return f"{name} could not be loaded ({first}): choose another model."
