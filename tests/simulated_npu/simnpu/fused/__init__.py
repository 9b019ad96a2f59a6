"""Operators that the CPU has no kernel for, most of torch_npu's own name space (npu::), in plain maths.

Names, arguments and defaults are read from the schemas in the wheel; what an argument means is taken from the operator
documentation. An argument that the maths here does not know is refused, never ignored.
"""

from __future__ import annotations


def register() -> None:
    """Registers every operator of this package."""
    from simnpu.fused import kernels

    with kernels.registering():
        from simnpu.fused import (  # noqa: F401  (each module registers its operators)
            activations,
            attention,
            block_quantisation,
            block_sparse,
            boxes,
            cache_steps,
            caches,
            chosen_keys,
            collective_products,
            convolution_states,
            convolutions,
            device_only,
            expert_parallel,
            experts,
            exponent_coding,
            floyd,
            formats,
            hyper_connections,
            indexer_gradients,
            indexing,
            inference,
            latent,
            layers,
            linear_attention,
            losses,
            matmul,
            microscaling,
            named_gradients,
            native_sparse,
            norms,
            optimizers,
            quantisation,
            quantised_layers,
            quantised_products,
            random,
            recurrent,
            regions,
            rotary,
            rotated_boxes,
            routed_products,
            routing_maps,
            sampling,
            silent_checks,
            softmaxes,
            sparse,
        )
