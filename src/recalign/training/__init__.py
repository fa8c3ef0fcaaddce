"""Training of LoRA adapters: supervised fine-tuning, the reference log-probs, and preference objectives."""
