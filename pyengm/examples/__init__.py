"""Short example programs, such as python -m pyengm.examples.adamw_vit."""
