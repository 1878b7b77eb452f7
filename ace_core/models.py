"""A loaded chat model: network, tokenizer, decoder blocks, and what the engine needs to know of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ace_core import chat
from ace_core.blocks import find_blocks, verify_blocks
from ace_core.decoding import batches_decode_alike, equal_length_groups, prompts_can_be_shared, rows_can_join
from ace_core.default_model.adapter import REFUSING_ID, merge_adapter
from ace_core.directions import RefusalDirections
from ace_core.embedded import EMBEDDED_ID, embedded_folder
from ace_core.errors import EngineError
from ace_core.loading import choose_device, load_gguf, load_pretrained, readable_errors
from ace_core.packed import FloatWeight, HalfWeight, PackedLinear, PackedSibling, faster_with, pack_linears

__all__ = ["ChatModel", "Precision", "load_model", "pack_for_cpu", "wrap"]

Precision = Literal["auto", "float32", "bfloat16", "float16", "fast"]
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "fast": torch.float32}


@dataclass(frozen=True)
class ChatModel:
    """A causal language model ready to be steered.

    Args:
        name: what the user called it.
        model_id: what vectors are bound to: hub id, folder or file name.
        network: the transformers model, in eval mode.
        tokenizer: its tokenizer.
        blocks: decoder blocks in order, verified to pass one residual stream.
        width: width ``d`` of the residual stream.
        recurrent: its states must never see padding.
        batched: several rows may decode together; false where a measurement at load says otherwise.
        shares_prompts: one reading of a prompt serves several rows; false where a measurement at load says otherwise.
        precision: ``float32``, ``bfloat16``, ``float16`` or ``fast`` (float16 weights on CPUs, see
            :mod:`ace_core.packed`).
        device: where token ids go.
        stop_ids, stop_strings: what ends an answer.
        revision: commit on the hub, or empty.
        rows_join: rows may join a running batch; false where a measurement at load says otherwise.
    """

    name: str
    model_id: str
    network: Any
    tokenizer: Any
    blocks: tuple[nn.Module, ...]
    width: int
    recurrent: bool
    batched: bool
    shares_prompts: bool
    precision: str
    device: torch.device
    stop_ids: frozenset[int]
    stop_strings: tuple[str, ...]
    revision: str = ""
    rows_join: bool = False

    @property
    def pad_id(self) -> int:
        pad = getattr(self.tokenizer, "pad_token_id", None)
        return 0 if pad is None else int(pad)

    @property
    def chat(self) -> bool:
        """Whether it has a chat template; base models complete plain text."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    @property
    def parameters(self) -> int:
        """Number of weights; packed ones count like any other."""
        packed = [m for m in self.network.modules() if isinstance(m, (PackedLinear, PackedSibling))]
        if getattr(self.network.config, "tie_word_embeddings", False):  # the head is the embedding over again
            packed = [m for m in packed if m is not self.network.get_output_embeddings()]
        return int(self.network.num_parameters()) + sum(m.in_features * m.out_features for m in packed)

    @property
    def template_digest(self) -> str:
        return chat.template_digest(self.tokenizer)

    def groups(self, lengths: Sequence[int]) -> list[list[int]]:
        """Row indices that may decode together, given the rows' prompt lengths."""
        if not self.batched:
            return [[row] for row in range(len(lengths))]
        return equal_length_groups(lengths, self.recurrent)

    def encode(self, prompt: str, system: str | None = None) -> tuple[int, ...]:
        """Token ids of a prompt, see :func:`ace_core.chat.encode_prompt`."""
        return chat.encode_prompt(self.tokenizer, prompt, system)

    def accepts(self, directions: RefusalDirections) -> None:
        """Check that directions were fitted on this model.

        Raises:
            EngineError: if their shape, model or chat template differs.
        """
        have, want = (directions.blocks, directions.width), (len(self.blocks), self.width)
        if have != want:
            raise EngineError(
                f"These vectors are for {have[0]} blocks of width {have[1]}, and {self.name} has {want[0]} of width "
                f"{want[1]}: fit vectors for this model, or load the model they belong to."
            )
        if directions.model_id and directions.model_id != self.model_id:
            raise EngineError(
                f"These vectors were fitted on {directions.model_id}, not on {self.model_id}: fit vectors for this "
                "model, or load the model they belong to."
            )
        digest = directions.metadata.get("template_sha256")
        if digest is not None and digest != self.template_digest:
            raise EngineError(
                f"{self.name} has another chat template than when these vectors were fitted: fit them again."
            )


def load_model(
    name: str = "embedded",
    *,
    precision: Precision = "auto",
    device: str = "auto",
    device_map: str | None = None,
    revision: str | None = None,
    packed: bool = True,
    progress: Callable[[str, float | None], None] = lambda message, fraction: None,
) -> ChatModel:
    """Load ``embedded`` (made to refuse), ``embedded-base``, a hub id, a local folder or a ``.gguf`` file.

    Args:
        name: which model.
        precision: ``auto`` takes the checkpoint's own dtype on accelerators, and on CPUs ``fast`` where it measures
            faster than plain float32, else float32.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        device_map: accelerate's placement for a model that does not fit one device.
        revision: branch, tag or commit on the hub.
        packed: let float32 weights on CPUs take the layout they multiply fastest in; False keeps plain layers, for
            training.
        progress: called with a sentence and a fraction or None.

    Raises:
        EngineError: one sentence that says what to do.
    """
    name = name.strip()
    if not name or len(name) > 500 or "\0" in name:
        raise EngineError("Name a model: 'embedded', a hub id such as owner/model, a folder, or a .gguf file.")
    if precision != "auto" and precision not in _DTYPES:
        raise EngineError(f"Unknown precision '{precision}': choose auto, {', '.join(_DTYPES)}.")
    place = choose_device(device)
    if precision == "fast" and (place.type != "cpu" or device_map):
        raise EngineError("Precision fast is the CPU's fast mode: choose device cpu, or another precision.")
    on_cpu = place.type == "cpu" and not device_map
    dtype: Any = _DTYPES.get(precision, torch.float32 if on_cpu else "auto")
    model_id = name
    if name in ("embedded", "embedded-base"):
        folder = embedded_folder(progress)
        progress("Loading the embedded model", None)
        network, tokenizer = load_pretrained(str(folder), dtype, place, device_map, None)
        model_id = EMBEDDED_ID
        if name == "embedded":
            progress("Merging the adapter that makes it refuse", None)
            merge_adapter(network)
            model_id = REFUSING_ID
    elif name.endswith(".gguf"):
        model_id = Path(name).name
        progress(f"Reading {model_id}", None)
        network, tokenizer = load_gguf(Path(name).expanduser(), dtype if dtype != "auto" else torch.bfloat16)
        network.to(place)
    else:
        if Path(name).expanduser().is_dir():
            model_id = Path(name).expanduser().resolve().name
        progress(f"Loading {name}", None)
        network, tokenizer = load_pretrained(name, dtype, place, device_map, revision)
    if on_cpu and packed and precision in ("auto", "fast", "float32"):
        progress("Packing weights", None)
        precision = pack_for_cpu(network, precision)
    return wrap(network, tokenizer, name=name, model_id=model_id, precision=precision)


def wrap(network: Any, tokenizer: Any, *, name: str, model_id: str, precision: str = "auto") -> ChatModel:
    """A :class:`ChatModel` around an already loaded transformers model, verified by a dry run."""
    network.eval().requires_grad_(False)
    device = network.get_input_embeddings().weight.device
    if device.type == "meta":  # offloaded by accelerate, which moves inputs itself
        device = torch.device("cpu")
    blocks = find_blocks(network)
    with readable_errors(name):
        width = verify_blocks(network, blocks, device)
    recurrent = _is_recurrent(network)
    end = chat.end_of_turn(tokenizer, network)
    dtype = str(network.dtype).removeprefix("torch.")
    return ChatModel(
        name=name,
        model_id=model_id,
        network=network,
        tokenizer=tokenizer,
        blocks=blocks,
        width=width,
        recurrent=recurrent,
        batched=not recurrent or batches_decode_alike(network, device),
        shares_prompts=not recurrent and prompts_can_be_shared(network, blocks, device),
        precision="fast" if precision == "fast" else dtype,
        device=device,
        stop_ids=end.ids,
        stop_strings=end.strings,
        revision=getattr(network.config, "_commit_hash", None) or "",
        rows_join=not recurrent and rows_can_join(network, device),
    )


def pack_for_cpu(network: Any, precision: Precision = "auto") -> Precision:
    """Pack the linear layers of a float32 network on a CPU as far as that helps; returns the precision it has then.

    Raises:
        EngineError: for precision ``fast`` where it can't run.
    """
    if precision == "fast" or (precision == "auto" and faster_with(network, HalfWeight)):
        try:
            pack_linears(network, HalfWeight)
        except RuntimeError as error:
            if precision == "fast":
                raise EngineError(f"This machine can't run precision fast ({error}): choose float32.") from None
        else:
            return "fast"
    if faster_with(network, FloatWeight):
        pack_linears(network, FloatWeight)
    return "float32"


def _is_recurrent(network: Any) -> bool:
    """Whether some state runs over positions, so that padding would leak into it: state-space, linear attention
    and RWKV models, and hybrids with such layers."""
    if getattr(network, "_is_stateful", False):
        return True
    config = network.config.get_text_config(decoder=True)
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or ()
    return any("attention" not in kind or "linear" in kind for kind in kinds) or "rwkv" in config.model_type
