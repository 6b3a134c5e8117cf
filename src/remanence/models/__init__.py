"""Models with memory as files: the built-in one, any decoder of Hugging Face, and the published checkpoints."""
