"""Planning: from a checkpoint and a dataset's nnU-Net plan to a ptPlans file."""
