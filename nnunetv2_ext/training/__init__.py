"""Training: nnU-Net's trainer with pre-trained weights, warm-up and checkpoints that stock nnU-Net predicts from."""
