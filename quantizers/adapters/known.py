"""Constructor options of vector-quantize-pytorch 1.32 that the adapter understands, by class.

A later version may have more. A module that uses one of those is wrapped, not converted.
"""

from __future__ import annotations

_LAYOUT = "channel_last channel_first is_channel_first accept_image_fmap accept_3d_fmap"
_DROPOUT = "quantize_dropout quantize_dropout_cutoff_index quantize_dropout_multiple_of"
_BOOKS = "num_codebooks keep_num_codebooks_dim"

_OPTIONS = {
    "VectorQuantize": (
        "dim codebook_size codebook_dim heads separate_codebook_per_head decay eps freeze_codebook kmeans_init "
        "kmeans_iters sync_kmeans use_cosine_sim layernorm_after_project_in threshold_ema_dead_code commitment_weight "
        "commitment_use_cross_entropy_loss orthogonal_reg_weight orthogonal_reg_active_codes_only "
        "orthogonal_reg_max_codes codebook_diversity_loss_weight codebook_diversity_temperature "
        "stochastic_sample_codes sample_codebook_temp straight_through rotation_trick directional_reparam "
        "directional_reparam_variance "
        "sync_codebook sync_affine_param ema_update vq_bridge manual_ema_update learnable_codebook "
        "in_place_codebook_optimizer manual_in_place_optimizer_update affine_param affine_param_batch_decay "
        "affine_param_codebook_decay sync_update_v return_zeros_for_masked_padding route_gradients_to_input"
    ),
    "ResidualVQ": (
        "dim num_quantizers codebook_size codebook_dim shared_codebook diveq heads implicit_neural_codebook mlp_kwargs "
        "beam_size eval_beam_size beam_score_quantizer_weights quant_grad_frac return_zeros_for_masked_padding "
        f"{_DROPOUT}"
    ),
    "FSQ": (
        "levels dim scale allowed_dtypes projection_has_bias return_indices force_quantization_f32 preserve_symmetry "
        f"noise_dropout bound_hard_clamp orthogonal_rotation {_BOOKS}"
    ),
    "ResidualFSQ": f"levels num_quantizers dim soft_clamp_input_value bound_hard_clamp {_DROPOUT}",
    "LFQ": (
        "dim codebook_size entropy_loss_weight commitment_loss_weight diversity_gamma straight_through_activation "
        "codebook_scale frac_per_sample_entropy has_projections projection_has_bias soft_clamp_input_value "
        "cosine_sim_project_in cosine_sim_project_in_scale experimental_softplus_entropy_loss entropy_loss_offset "
        f"spherical force_quantization_f32 orthogonal_rotation {_BOOKS}"
    ),
    "ResidualLFQ": f"dim num_quantizers codebook_size soft_clamp_input_value {_DROPOUT}",
    "SimVQ": (
        "dim codebook_size codebook_transform init_fn rotation_trick input_to_quantize_commit_loss_weight "
        "commitment_weight frozen_codebook_dim"
    ),
    "ResidualSimVQ": f"dim num_quantizers codebook_size heads rotation_trick {_DROPOUT}",
    "LatentQuantize": (
        "levels dim commitment_loss_weight quantization_loss_weight codebook_dim optimize_values "
        f"in_place_codebook_optimizer {_BOOKS}"
    ),
    "HierarchicalVQ": (
        "dim codebook_size scales shared_codebook sync_codebook decay commitment_weight rotation_trick kmeans_init "
        "kmeans_iters threshold_ema_dead_code stochastic_sample_codes sample_codebook_temp orthogonal_reg_weight "
        "orthogonal_reg_max_codes orthogonal_reg_active_codes_only quant_resi share_quant_resi nested_dropout "
        "nested_dropout_min_levels"
    ),
    "GroupedResidualVQ": "dim groups",
    "GroupedResidualFSQ": "dim groups",
    "GroupedResidualLFQ": "dim groups",
}

KNOWN = {name: frozenset(f"{options} {_LAYOUT}".split()) for name, options in _OPTIONS.items()}
