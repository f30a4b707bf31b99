"""What every other part of the package may use: files, locks, processes, checks of tensors, the terminal."""
