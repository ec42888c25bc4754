"""For each flag of `personalize train`: two runs that differ by it, and where that is seen."""

FULL = {"kind": "full"}
TEXT = {"kind": "lora+text"}
TOKEN = {"kind": "token"}
PRIOR, L2, OUTPUT, FISHER = ({"objective": o} for o in ("prior", "l2", "output", "fisher"))
SD3 = {"pretrained_model_name_or_path": "@sd3"}
NEW_SET = {"class_data_dir": "@new"}  # a class folder of its own, because another set is made
VALIDATED = {
    "validation_prompt": ("a dog",),
    "num_validation_images": 1,
    "validation_inference_steps": 2,
}
CHECKPOINTS = {"max_train_steps": 3, "checkpointing_steps": 1}
BY_EPOCH = {"max_train_steps": None}

# flag: (what both runs share, what the second has, where the difference is seen)
SEEN = {
    "pretrained_model_name_or_path": (
        {},
        {"pretrained_model_name_or_path": "@other_sd"},
        "weights",
    ),
    "instance_data_dir": ({}, {"instance_data_dir": "@captioned"}, "weights"),
    "instance_prompt": ({}, {"instance_prompt": "a sks cat"}, "weights"),
    "class_data_dir": (PRIOR, NEW_SET, "class_folder"),
    "class_prompt": (PRIOR, {"class_prompt": "a cat", **NEW_SET}, "weights"),
    "resolution": ({}, {"resolution": 32}, "weights"),
    "center_crop": ({}, {"center_crop": False}, "weights"),
    "pad": ({"center_crop": False}, {"pad": True}, "weights"),
    "random_flip": ({}, {"random_flip": True}, "weights"),
    "repeats": (BY_EPOCH, {"repeats": 2}, "weights"),
    "ignore_captions": ({"instance_data_dir": "@captioned"}, {"ignore_captions": True}, "weights"),
    "train": ({}, FULL, "files"),
    "train_text_encoder": ({}, TEXT, "weights"),
    "rank": ({}, {"rank": 2}, "weights"),
    "lora_alpha": ({}, {"lora_alpha": 16.0}, "weights"),
    "lora_dropout": ({}, {"lora_dropout": 0.5}, "weights"),
    "lora_target_modules": ({}, {"lora_target_modules": ("to_q",)}, "weights"),
    "decompose_factor": ({"kind": "lokr"}, {"decompose_factor": 2}, "weights"),
    "oft_block_size": ({"kind": "oft"}, {"oft_block_size": 4}, "weights"),
    "placeholder_token": (
        TOKEN,
        {"placeholder_token": "<new>"} | {"instance_prompt": "a photo of <new> dog"},
        "weights",
    ),
    "initializer_token": (TOKEN, {"initializer_token": "cat"}, "weights"),
    "num_vectors": (TOKEN, {"num_vectors": 2}, "weights"),
    "freeze_model": ({"kind": "custom_diffusion"}, {"freeze_model": "crossattn"}, "weights"),
    "concepts_list": (
        {},
        {"concepts_list": "@concepts", "instance_data_dir": None, "instance_prompt": None},
        "weights",
    ),
    "objective": ({}, L2, "weights"),
    "with_prior_preservation": (
        {},
        {
            "with_prior_preservation": True,
            "class_prompt": "a photo of a dog",
            "class_data_dir": "@class",
            "num_class_images": 3,
            "class_steps": 2,
        },
        "weights",
    ),
    "prior_loss_weight": (PRIOR, {"prior_loss_weight": 0.1}, "weights"),
    "l2_reg_weight": (L2, {"l2_reg_weight": 0.1}, "weights"),
    "output_weight": (OUTPUT, {"output_weight": 10.0}, "weights"),
    "fisher_weight": (FISHER, {"fisher_weight": 100.0}, "weights"),
    "reg_reduction": (L2, {"reg_reduction": "tensor_mean"}, "weights"),
    "l2_layers": (L2, {"l2_layers": ("cross_attn:1",)}, "weights"),
    "max_path_kl": (L2 | {"path_kl_steps": 1}, {"max_path_kl": 1e-6}, "weights"),
    "reg_decoupled": (L2, {"reg_decoupled": True}, "weights"),
    "anchor_dtype": (FULL | L2, {"anchor_dtype": "bf16"}, "weights"),
    "snr_gamma": ({}, {"snr_gamma": 0.01}, "weights"),
    "weighting_scheme": (SD3, {"weighting_scheme": "cosmap"}, "weights"),
    "logit_mean": (SD3, {"logit_mean": 1.0}, "weights"),
    "logit_std": (SD3, {"logit_std": 0.1}, "weights"),
    "mode_scale": (SD3 | {"weighting_scheme": "mode"}, {"mode_scale": -1.0}, "weights"),
    "precondition_outputs": (SD3, {"precondition_outputs": True}, "weights"),
    "without_t5": (SD3, {"without_t5": True}, "weights"),
    "offset_noise": ({}, {"offset_noise": True}, "weights"),
    "output_source": (
        OUTPUT | {"output_weight": 10.0},
        {
            "output_source": "instance",
            "class_data_dir": None,
            "num_class_images": 100,
            "class_steps": 20,
        },
        "weights",
    ),
    "output_draws": (
        FULL | OUTPUT | {"output_draws": 2, "max_train_steps": 3},
        {"output_draws": 1},
        "weights",
    ),
    "fisher_samples": (FISHER, {"fisher_samples": 4}, "weights"),
    "num_class_images": (PRIOR, {"num_class_images": 2}, "weights"),
    "class_sampler": (PRIOR, {"class_sampler": "ddim", **NEW_SET}, "weights"),
    "class_steps": (PRIOR, {"class_steps": 3, **NEW_SET}, "weights"),
    "class_guidance": (PRIOR, {"class_guidance": 1.5, **NEW_SET}, "weights"),
    "class_keep": (PRIOR, {"class_keep": "latents", **NEW_SET}, "weights"),
    "prior_generation_precision": (
        PRIOR,
        {"prior_generation_precision": "bf16", **NEW_SET},
        "weights",
    ),
    "output_dir": ({}, {"output_dir": "@new"}, "folder"),
    "seed": ({}, {"seed": 1}, "weights"),
    "train_batch_size": ({}, {"train_batch_size": 1}, "weights"),
    "num_train_epochs": (BY_EPOCH, {"num_train_epochs": 2}, "weights"),
    "max_train_steps": ({}, {"max_train_steps": 1}, "weights"),
    "gradient_accumulation_steps": ({}, {"gradient_accumulation_steps": 2}, "weights"),
    "mixed_precision": ({}, {"mixed_precision": "bf16"}, "weights"),
    "learning_rate": ({}, {"learning_rate": 1e-3}, "weights"),
    "text_encoder_lr": (TEXT, {"text_encoder_lr": 1e-4}, "weights"),
    "scale_lr": ({}, {"scale_lr": True}, "weights"),
    "lr_scheduler": ({}, {"lr_scheduler": "linear"}, "weights"),
    "lr_warmup_steps": (
        {"lr_scheduler": "constant_with_warmup"},
        {"lr_warmup_steps": 1},
        "weights",
    ),
    "lr_num_cycles": ({"lr_scheduler": "cosine_with_restarts"}, {"lr_num_cycles": 2}, "weights"),
    "lr_power": ({"lr_scheduler": "polynomial"}, {"lr_power": 2.0}, "weights"),
    "adam_beta1": ({}, {"adam_beta1": 0.5}, "weights"),
    "adam_beta2": ({}, {"adam_beta2": 0.5}, "weights"),
    "adam_weight_decay": ({}, {"adam_weight_decay": 0.5}, "weights"),
    "adam_epsilon": ({}, {"adam_epsilon": 1e-2}, "weights"),
    "max_grad_norm": ({}, {"max_grad_norm": 1e-4}, "weights"),
    "use_ema": ({}, {"use_ema": True}, "weights"),
    "ema_decay": ({"use_ema": True}, {"ema_decay": 0.01}, "weights"),
    "checkpointing_steps": ({}, {"checkpointing_steps": 1}, "files"),
    "checkpoints_total_limit": (CHECKPOINTS, {"checkpoints_total_limit": 1}, "files"),
    "checkpoint_weights_only": (CHECKPOINTS, {"checkpoint_weights_only": True}, "sizes"),
    "log_every": ({}, {"log_every": 2}, "history"),
    "probe_steps": ({}, {"probe_steps": 1}, "history"),
    "path_kl_steps": ({}, {"path_kl_steps": 1}, "history"),
    "measure_chains": ({}, {"measure_chains": 3}, "history"),
    "measure_nodes": ({}, {"measure_nodes": 4}, "history"),
    "nodes_per_chain": ({}, {"nodes_per_chain": 2}, "history"),
    "held_out": ({"instance_data_dir": "@five"}, {"held_out": 1}, "weights"),
    "held_out_data_dir": ({}, {"held_out_data_dir": "@others"}, "history"),
    "gain_samples": ({"held_out_data_dir": "@others"}, {"gain_samples": 8}, "history"),
    "context_prompts": (PRIOR, {"context_prompts": ("a dog on the beach",)}, "history"),
    "unrelated_prompts": ({}, {"unrelated_prompts": ("a house",)}, "history"),
    "validation_prompt": ({}, VALIDATED, "files"),
    "num_validation_images": (VALIDATED, {"num_validation_images": 2}, "pictures"),
    "validation_steps": (VALIDATED, {"validation_steps": 1}, "files"),
    "validation_inference_steps": (VALIDATED, {"validation_inference_steps": 3}, "pictures"),
    "validation_guidance": (VALIDATED, {"validation_guidance": 1.0}, "pictures"),
}

# flag: (what the run has, what the error says) where this machine or this input cannot do it
REFUSED = {
    "revision": ({"revision": "main"}, "local folder; it has no revisions"),
    "variant": ({"variant": "fp16"}, "cannot be loaded with variant 'fp16'"),
    "boft_n_butterfly_factor": (
        {"kind": "boft", "boft_n_butterfly_factor": 2},
        "needs PEFT's CUDA extension",
    ),
    "use_8bit_adam": ({"use_8bit_adam": True}, "needs bitsandbytes"),
    "allow_tf32": ({"allow_tf32": True}, "no CUDA device"),
    "report_to": ({"report_to": "tensorboard"}, "not installed here"),
    "resume_from_checkpoint": ({"resume_from_checkpoint": "latest"}, "no whole checkpoint"),
}

# flags that change cost and not results, or are tested elsewhere
ELSEWHERE = {
    "sample_batch_size": "pictures do not depend on it (test_sample.py)",
    "gradient_checkpointing": "test_gradient_checkpointing_recomputes, below",
    "anchor_device": "test_the_anchor_waits_where_it_is_told_to, below",
    "measure_layers": "drift/test_by_layer.py",
    "dry_run": "test_cli.py",
    "preset": "test_presets.py",
}
