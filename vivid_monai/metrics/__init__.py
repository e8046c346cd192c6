"""AUROC and average precision on labels with gaps, and their intervals over patients."""
