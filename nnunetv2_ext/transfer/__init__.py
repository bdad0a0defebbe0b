"""Transfer of pre-trained weights: pure functions from tensors and a module to new tensors and a report."""
