"""LLaVA-OneVision supervised fine-tuning with an exact, resumable plan."""
