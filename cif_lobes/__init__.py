"""CIF speech recognition with hierarchical knowledge distillation, for SpeechBrain."""
