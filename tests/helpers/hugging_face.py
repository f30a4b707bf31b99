"""The smallest models of Hugging Face's families, from their configurations: nothing is loaded."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

SIZES = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 40,
    "max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GROUPED = {**SIZES, "num_key_value_heads": 1}  # two heads share their keys and values
WITH_HEADS = {**GROUPED, "head_dim": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
OF_GPT = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 40, "n_positions": 32}
OF_XLM = {"emb_dim": 16, "n_layers": 2, "n_heads": 2, "vocab_size": 40, "max_position_embeddings": 32}
OF_MAMBA = {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 40, "state_size": 4}
OF_T5 = {
    "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "vocab_size": 40,
    "decoder_start_token_id": 0,
}  # fmt: skip
OF_BART = {
    "d_model": 16, "vocab_size": 40, "max_position_embeddings": 32, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
    "pad_token_id": 0, "decoder_start_token_id": 0,
}  # fmt: skip
OF_VIT = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
OF_SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [2, 1], "num_heads": [2, 2], "window_size": 4}
TWO_STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1]}
SINGLE = {f"{part}_groups": 1 for part in ("q", "k", "v", "post_attention", "intermediate", "output")}
RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}

ENCODERS = {
    "Albert": {**SIZES, "embedding_size": 8}, "Bert": SIZES, "BigBird": {**SIZES, "attention_type": "original_full"},
    "ConvBert": {**SIZES, "embedding_size": 16, "head_ratio": 1, "conv_kernel_size": 3}, "Data2VecText": SIZES,
    "Deberta": {**SIZES, **RELATIVE, "max_relative_positions": 8},
    "DebertaV2": {**SIZES, **RELATIVE, "position_buckets": 8, "share_att_key": True, "norm_rel_ebd": "layer_norm"},
    "DistilBert": {
        "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "vocab_size": 40, "max_position_embeddings": 32,
    },
    "Electra": {**SIZES, "embedding_size": 8},
    "Esm": {**SIZES, "mask_token_id": 3, "position_embedding_type": "rotary"}, "Ernie": SIZES,
    "FNet": {key: value for key, value in SIZES.items() if key != "num_attention_heads"}, "Flaubert": OF_XLM,
    "IBert": SIZES, "LayoutLM": {**SIZES, "max_2d_position_embeddings": 16}, "MPNet": SIZES, "MegatronBert": SIZES,
    "MobileBert": {
        **SIZES, "embedding_size": 8, "true_hidden_size": 16, "intra_bottleneck_size": 16,
        "num_feedforward_networks": 1,
    },
    "ModernBert": {
        **SIZES, "cls_token_id": 1, "sep_token_id": 2, "local_attention": 4, "global_attn_every_n_layers": 2,
    },
    "RemBert": {**SIZES, "input_embedding_size": 8, "output_embedding_size": 8},
    "RoFormer": {**SIZES, "embedding_size": 16}, "Roberta": SIZES, "Splinter": SIZES,
    "SqueezeBert": {**SIZES, **SINGLE, "embedding_size": 16}, "XLM": OF_XLM,
    "XLNet": {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24, "vocab_size": 40}, "Yoso": SIZES,
}  # fmt: skip
DECODERS = {
    "BioGpt": SIZES, "Bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2, "vocab_size": 40},
    "CTRL": {**OF_GPT, "dff": 24}, "CodeGen": {**OF_GPT, "n_head": 4, "rotary_dim": 4}, "Cohere": GROUPED,
    "DeepseekV3": {
        **SIZES, "num_key_value_heads": 2, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2,
        "topk_group": 1, "moe_intermediate_size": 8, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4, "v_head_dim": 8, "first_k_dense_replace": 1,
    },
    "Falcon": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 40},
    "FalconMamba": OF_MAMBA, "GPT2": OF_GPT, "GPTBigCode": OF_GPT, "GPTJ": {**OF_GPT, "rotary_dim": 4},
    "GPTNeo": {
        "hidden_size": 16, "num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]],
        "vocab_size": 40, "max_position_embeddings": 32, "window_size": 4,
    },
    "GPTNeoX": SIZES, "Gemma": WITH_HEADS, "Gemma2": {**WITH_HEADS, "sliding_window": 4},
    "Gemma3Text": {**WITH_HEADS, "sliding_window": 4}, "Glm": WITH_HEADS,
    "GptOss": {**WITH_HEADS, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4},
    "Granite": GROUPED, "Lfm2": {
        **GROUPED, "block_ff_dim": 24, "block_multiple_of": 4, "layer_types": ["conv", "full_attention"],
    },
    "Llama": GROUPED, "Llama4Text": {**WITH_HEADS, "num_local_experts": 2, "intermediate_size_mlp": 24},
    "Mamba": OF_MAMBA, "Mamba2": {**OF_MAMBA, "num_heads": 4, "head_dim": 8, "n_groups": 2, "chunk_size": 4},
    "Mistral": {**GROUPED, "sliding_window": 4},
    "Mixtral": {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "Mpt": {"d_model": 16, "n_layers": 2, "n_heads": 2, "vocab_size": 40, "max_seq_len": 32}, "Nemotron": GROUPED,
    "OPT": {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 24, "vocab_size": 40,
        "max_position_embeddings": 32, "word_embed_proj_dim": 16,
    },
    "Olmo": GROUPED, "Olmo2": GROUPED, "Olmoe": {**GROUPED, **EXPERTS}, "OpenAIGPT": OF_GPT, "Persimmon": SIZES,
    "Phi": SIZES, "Phi3": GROUPED, "Qwen2": GROUPED,
    "Qwen2Moe": {**GROUPED, **EXPERTS, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8},
    "Qwen3": WITH_HEADS, "RecurrentGemma": {
        **GROUPED, "attention_window_size": 4, "lru_width": 16, "num_hidden_layers": 3,
    },
    "Rwkv": {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 40, "attention_hidden_size": 16},
    "SmolLM3": GROUPED, "StableLm": GROUPED, "Starcoder2": GROUPED,
}  # fmt: skip
ENCODER_DECODERS = {
    "Bart": OF_BART, "BigBirdPegasus": {**OF_BART, "attention_type": "original_full"}, "Blenderbot": OF_BART,
    "BlenderbotSmall": OF_BART, "LongT5": {**OF_T5, "local_radius": 2}, "M2M100": OF_BART, "MBart": OF_BART,
    "MT5": OF_T5, "Marian": OF_BART, "Mvp": OF_BART, "PLBart": OF_BART, "Pegasus": OF_BART,
    "PegasusX": {**OF_BART, "block_size": 4, "num_global_tokens": 2},
    "SwitchTransformers": {
        **OF_T5, "num_experts": 2, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1,
    },
    "T5": OF_T5, "UMT5": OF_T5,
}  # fmt: skip
VISION = {
    "Beit": {**OF_VIT, "use_relative_position_bias": True}, "CLIPVision": OF_VIT,
    "ConvNext": {**TWO_STAGES, "num_stages": 2, "image_size": 32},
    "ConvNextV2": {**TWO_STAGES, "num_stages": 2, "image_size": 32}, "DINOv3ViT": {**OF_VIT, "num_register_tokens": 2},
    "Data2VecVision": {**OF_VIT, "use_shared_relative_position_bias": True}, "DeiT": OF_VIT, "Dinov2": OF_VIT,
    "DonutSwin": OF_SWIN,
    "FocalNet": {**TWO_STAGES, "image_size": 32, "embed_dim": 8, "focal_levels": [2, 2], "focal_windows": [3, 3]},
    "Hiera": {
        "image_size": [32, 32], "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "query_stride": [2, 2],
        "masked_unit_size": [4, 4], "num_query_pool": 1, "embed_dim_multiplier": 2.0, "patch_stride": [4, 4],
    },
    "IJepa": OF_VIT, "Levit": {
        "image_size": 32, "hidden_sizes": [16, 16, 16], "num_attention_heads": [2, 2, 2], "depths": [1, 1, 1],
        "key_dim": [4, 4, 4],
    },
    "MobileNetV1": {"image_size": 32, "depth_multiplier": 0.25},
    "MobileNetV2": {"image_size": 32, "depth_multiplier": 0.35},
    "MobileViT": {
        "image_size": 64, "hidden_sizes": [8, 12, 16], "neck_hidden_sizes": [4, 4, 8, 8, 8, 8, 16],
        "num_attention_heads": 2,
    },
    "PoolFormer": {
        **TWO_STAGES, "num_encoder_blocks": 2, "patch_sizes": [7, 3], "strides": [4, 2], "padding": [2, 1],
    },
    "Pvt": {
        "image_size": 32, "num_encoder_blocks": 4, "depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 8, 8],
        "num_attention_heads": [1, 1, 2, 2],
    },
    "RegNet": {**TWO_STAGES, "embedding_size": 8, "groups_width": 4},
    "ResNet": {**TWO_STAGES, "embedding_size": 8, "layer_type": "basic"},
    "Segformer": {
        **TWO_STAGES, "num_encoder_blocks": 2, "sr_ratios": [2, 1], "patch_sizes": [7, 3], "strides": [4, 2],
        "num_attention_heads": [1, 2], "mlp_ratios": [2, 2], "decoder_hidden_size": 8,
    },
    "SiglipVision": OF_VIT, "SwiftFormer": {"image_size": 64, "depths": [1, 1, 1, 1], "embed_dims": [8, 8, 8, 8]},
    "Swin": OF_SWIN, "Swinv2": OF_SWIN, "ViT": OF_VIT, "ViTMSN": OF_VIT, "VitDet": OF_VIT,
    "Yolos": {**OF_VIT, "image_size": [32, 32], "num_detection_tokens": 4},
}  # fmt: skip
FAMILIES = {**ENCODERS, **DECODERS, **ENCODER_DECODERS, **VISION}

LENGTHS = torch.tensor([[8, 5, 3, 7], [4, 8, 6, 3]])  # of the sequences of two batches


class Float64(TorchFunctionMode):
    """Casts to float32, which models make for their norms and softmaxes, are casts to float64."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        args = tuple(torch.float64 if one is torch.float32 else one for one in args)
        kwargs = {key: torch.float64 if one is torch.float32 else one for key, one in (kwargs or {}).items()}
        return func(*args, **kwargs)


def make(family: str, attention: str) -> nn.Module:
    """A model with random weights in evaluation mode. Raises ValueError where it has no such attention."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**FAMILIES[family])
    if hasattr(config, "num_experts_per_tok"):
        config._experts_implementation = "eager"  # the default has no float64
    auto = transformers.AutoModelForCausalLM if family in DECODERS else transformers.AutoModel
    return auto.from_config(config, attn_implementation=attention).double().eval()


def losses(family: str, model: nn.Module, batch: int) -> Tensor:
    """One loss for each of four images, or sequences padded to one length; batch 0 or 1."""
    model.train().eval()  # some keep tables that are computed from parameters until their mode changes
    torch.manual_seed(batch)
    if family in VISION:
        size = model.config.image_size if hasattr(model.config, "image_size") else 32
        size = min(64, size if isinstance(size, int) else size[0])
        found = model(torch.rand(4, 3, size, size, dtype=torch.float64))
        pooled = getattr(found, "pooler_output", None)
        return sum(one.flatten(1).sin().sum(1) for one in (found.last_hidden_state, pooled) if one is not None)
    mask = (torch.arange(8) < LENGTHS[batch][:, None]).long()
    ids = torch.randint(4, 40, (4, 8)) * mask
    if family in ENCODERS:
        return (model(input_ids=ids, attention_mask=mask)[0].sin().sum(2) * mask).sum(1)
    if family in DECODERS:
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        each = F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
        return (each * mask[:, 1:]).sum(1)
    decoded = {"decoder_input_ids": ids.flip(0), "decoder_attention_mask": mask.flip(0), "use_cache": False}
    return (model(input_ids=ids, attention_mask=mask, **decoded)[0].sin().sum(2) * mask.flip(0)).sum(1)
