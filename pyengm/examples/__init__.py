"""Short programs to start from: python -m pyengm.examples.adamw_vit."""
