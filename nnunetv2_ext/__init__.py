"""Plan, preprocess and fine-tune with stock nnU-Net from pre-trained 3D checkpoints."""

__version__ = "0.1.0"
