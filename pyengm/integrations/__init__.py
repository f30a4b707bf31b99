"""Per-example losses in the training loops of other libraries; each module is imported on its own.

`lightning` (a mixin of LightningModule), `accelerate` (a function), `transformers` (a Trainer).
"""
