"""Names of curves: by number of a row, and which are drawn together in TensorBoard."""

from __future__ import annotations

from training.ranks.phase_memory import PHASES

STEP_TAGS = {
    "loss": "train/loss",
    "objective": "train/objective",
    "lr": "train/learning_rate",
    "grad_norm": "train/gradient_norm",
    "tokens": "train/tokens",
    "epoch": "train/epoch",
    "drop_rate_asked": "dropout/rate_asked",
    "drop_rate_realised": "dropout/rate_realised",
    "gamma": "dropout/gamma",
    "entropy_threshold_nats": "entropy/threshold_nats",
    "mean_entropy_nats": "entropy/mean_nats",
    "tokens_per_second": "speed/tokens_per_second",
    "seconds": "speed/step_seconds",
    "model_tflops": "speed/model_tflops",
    "hardware_tflops": "speed/hardware_tflops",
    "mfu": "speed/mfu",
    "hfu": "speed/hfu",
}
RANK_TAGS = {
    "late_seconds": "ranks/late_seconds",
    "slowest_rank": "ranks/slowest",
    "peak_memory_gib": "ranks/peak_memory_gib",
    **{
        f"{phase}_{kind}_gib": f"memory/{phase}_{kind}_gib"
        for phase in PHASES
        for kind in ("allocated", "reserved")
    },
    "allocation_retries": "memory/allocation_retries",
}
EVALUATION_TAGS = {
    "loss": "heldout/loss",
    "entropy_nats": "heldout/entropy_nats",
    "forgetting_nats": "heldout/forgetting_nats",
    "ema_loss": "heldout/ema_loss",
    "seconds": "speed/evaluation_seconds",
}

# Curves shown together: TensorBoard's tab "Custom Scalars".
CHARTS = {
    "Is it learning?": {
        "training and held-out loss": ["Multiline", ["train/loss", "heldout/loss"]],
        "held-out loss by entropy band": ["Multiline", ["heldout/band_.*"]],
        "held-out loss by set": ["Multiline", ["heldout/.*/loss"]],
        "forgetting: loss minus that before the first step": [
            "Multiline",
            ["heldout/(.*/)?forgetting_nats"],
        ],
        "gradient norm": ["Multiline", ["train/gradient_norm"]],
    },
    "What is dropped?": {
        "asked and realised": ["Multiline", ["dropout/rate_asked", "dropout/rate_realised"]],
        "threshold and mean entropy": [
            "Multiline",
            ["entropy/threshold_nats", "entropy/mean_nats", "heldout/entropy_nats"],
        ],
    },
    "How fast?": {
        "tokens per second": ["Multiline", ["speed/tokens_per_second"]],
        "seconds": ["Multiline", ["speed/step_seconds", "ranks/late_seconds"]],
        "TFLOP/s of a GPU": ["Multiline", ["speed/model_tflops", "speed/hardware_tflops"]],
        "share of a GPU's peak": ["Multiline", ["speed/mfu", "speed/hfu"]],
        "memory": ["Multiline", ["ranks/peak_memory_gib"]],
        "memory by phase": ["Multiline", ["memory/.*_gib"]],
    },
}
