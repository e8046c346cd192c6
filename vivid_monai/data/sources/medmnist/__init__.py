"""OrganAMNIST and other grey sets of MedMNIST (Yang et al., Scientific Data 2023) from their official files."""
