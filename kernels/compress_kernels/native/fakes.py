"""What the CPU operators return, without computing it."""

from __future__ import annotations

import torch


def register_fakes() -> None:
    """Shapes of the results, so that torch.compile and export see one operator."""

    def like(x: torch.Tensor, out_features: int, out: torch.dtype | None) -> torch.Tensor:
        return x.new_empty((*x.shape[:-1], out_features), dtype=out or x.dtype)

    @torch.library.register_fake("compress_kernels::native_packed")
    def packed(x, codes, scale, zero, bits, group, k, interleaved, bias, residual, out):  # type: ignore[no-untyped-def]
        return like(x, codes.shape[0], out)

    @torch.library.register_fake("compress_kernels::native_nf4")
    def nf4(x, codes, absmax, table, bias, residual, out):  # type: ignore[no-untyped-def]
        return like(x, codes.shape[0], out)

    @torch.library.register_fake("compress_kernels::native_sparse")
    def sparse(x, mask, start, values, bits, scale, zero, group, k, interleaved, bias, residual, out):  # type: ignore[no-untyped-def]
        return like(x, mask.shape[0], out)

    @torch.library.register_fake("compress_kernels::native_int8")
    def int8(x, weight, scale, bias, residual, out):  # type: ignore[no-untyped-def]
        return like(x, weight.shape[0], out)

    @torch.library.register_fake("compress_kernels::native_dense")
    def dense(x, weight, bias, residual, out):  # type: ignore[no-untyped-def]
        return like(x, weight.shape[0], out)

    @torch.library.register_fake("compress_kernels::native_rms_norm")
    def rms_norm(x, weight, eps, offset, round_first):  # type: ignore[no-untyped-def]
        return torch.empty_like(x)

    @torch.library.register_fake("compress_kernels::native_attention")
    def attention(query, keys, values, position, scale, window, softcap):  # type: ignore[no-untyped-def]
        return query.new_empty((query.shape[0], 1, query.shape[1], values.shape[3]))

    @torch.library.register_fake("compress_kernels::native_prompt_attention")
    def prompt_attention(query, keys, values, scale, causal):  # type: ignore[no-untyped-def]
        batch, heads, length, _ = query.shape
        return query.new_empty((batch, length, heads, values.shape[3])).transpose(1, 2)

    @torch.library.register_fake("compress_kernels::native_round_columns")
    def round_columns(block, root, scale, low, high, groups, first, drift):  # type: ignore[no-untyped-def]
        return torch.empty_like(block), torch.empty_like(block)

    @torch.library.register_fake("compress_kernels::native_rounding_errors")
    def rounding_errors(values, costs, scale, zero, top):  # type: ignore[no-untyped-def]
        return torch.empty_like(scale)

    @torch.library.register_fake("compress_kernels::native_search_scales")
    def search_scales(values, *options):  # type: ignore[no-untyped-def]
        return values.new_empty(len(values)), values.new_empty(len(values))

    @torch.library.register_fake("compress_kernels::native_add_products")
    def add_products(sum, a, b):  # type: ignore[no-untyped-def]
        return None

    @torch.library.register_fake("compress_kernels::native_gguf")
    def gguf(x, packed, type, k, bias, residual, out):  # type: ignore[no-untyped-def]
        return like(x, packed.shape[0], out)
