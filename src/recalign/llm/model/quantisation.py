"""How the frozen weights are held and what multiplies them: decided from the hardware, with the reason in the log."""

import logging
from collections.abc import Callable
from functools import cache, partial
from types import ModuleType
from typing import Any

import torch

from recalign.params.base import BaseParams

log = logging.getLogger(__name__)
# bitsandbytes tells at import which optional kernels it lacks, and at every 8-bit layer that it rounds: both are known
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)


def choose_device() -> torch.device:
    """The first CUDA device, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def choose_dtype(params: BaseParams, device: torch.device) -> torch.dtype:
    """bf16 or fp32 as base.compute says; auto takes bf16 where the hardware multiplies it."""
    has, why = bf16_hardware(device)
    if params.compute == "auto":
        log.info("%s because %s", "bf16" if has else "fp32", why)
        return torch.bfloat16 if has else torch.float32
    if params.compute == "bf16" and not has:
        log.warning("base.compute is bf16 though %s: it is emulated, slower than fp32", why)
    return torch.bfloat16 if params.compute == "bf16" else torch.float32


def bf16_hardware(device: torch.device) -> tuple[bool, str]:
    """Whether the device multiplies bf16 itself, and the reason in words."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        has = torch.cuda.is_bf16_supported(including_emulation=False)
        return has, f"the GPU ({name}) {'multiplies' if has else 'does not multiply'} bf16"
    if torch.cpu._is_amx_tile_supported():
        return True, "the CPU has AMX tiles for bf16"
    if torch.cpu._is_avx512_bf16_supported():
        return True, "the CPU has AVX512-BF16"
    return False, "the CPU has no bf16 instructions"


def quantisation_config(params: BaseParams, device: torch.device, dtype: torch.dtype) -> Any | None:
    """A BitsAndBytesConfig for base.quantisation, or None for plain weights.

    nf4: 4-bit NormalFloat with double quantisation, blocks of 64 (QLoRA, arXiv 2305.14314, section 3); int8: LLM.int8()
    (arXiv 2208.07339). Where bitsandbytes cannot run, the log says why and the weights stay plain (LoRA, not QLoRA).
    """
    if params.quantisation == "none":
        return None
    reason = why_not_quantised(device)
    if reason is not None:
        log.warning("base.quantisation %s cannot run here (%s): plain weights, LoRA", params.quantisation, reason)
        return None
    from transformers import BitsAndBytesConfig

    if params.quantisation == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def import_bitsandbytes() -> ModuleType:
    """bitsandbytes, the quick way; to be called before PEFT is imported, which imports it.

    It has a few functions compiled while it is imported, and torch takes some 1.5 CPU seconds to import its compiler.
    Here each of them is compiled when it is first called, which plain weights never do.
    """
    compiler = torch.compile
    torch.compile = partial(compiled_later, compiler)
    try:
        import bitsandbytes
    finally:
        torch.compile = compiler
    return bitsandbytes


def compiled_later(
    compiler: Callable[..., Any], function: Callable[..., Any] | None = None, **options: Any
) -> Callable[..., Any]:
    """As torch.compile (`compiler`) with its options, also as a decorator: it is asked at the first call."""
    if function is None:
        return partial(compiled_later, compiler, **options)
    made = cache(lambda: compiler(function, **options))
    return lambda *given, **named: made()(*given, **named)


def why_not_quantised(device: torch.device) -> str | None:
    """Why bitsandbytes cannot run on the device, found by trying; None where it can."""
    try:
        import_bitsandbytes()
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

        block, state = quantize_4bit(torch.ones(64, 64, device=device), quant_type="nf4", compress_statistics=True)
        dequantize_4bit(block, state)
    except Exception as error:  # a missing native library or kernel shows itself in many ways, all of them final
        return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    return None


def same_in_both_modes(model: torch.nn.Module, device: torch.device) -> None:
    """Make quantised layers compute the same in eval as in train mode.

    On a CPU bitsandbytes does not: 4-bit weights are repacked at the first forward pass in eval mode (where there is
    AVX512-BF16) for a kernel that rounds differently, and 8-bit layers round their inputs to 8 bits in eval mode only.
    A reference scored in eval mode and a policy in train mode would disagree before any step.
    """
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
        elif isinstance(module, Linear8bitLt) and device.type == "cpu":
            module.training = True
            module.train = lambda mode=True, layer=module: layer  # type: ignore[method-assign,misc]  # stays so
