"""Find the HuggingFace Trainer settings that pre-train a model fastest on given GPUs."""
